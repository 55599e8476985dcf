"""Settings of a corpus of many voices and of its cache: a YAML file, validated when read."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from training.recipe import Augmentation, Settings, read_settings

Split = Literal["test", "validation", "train"]
# Parallel speech is a part of the corpus beside its splits.
PAIRS = "pairs"
Count = Annotated[int, Field(ge=0)]


class SpeechSettings(Settings):
    """Sentences, and their speakers.

    Attributes:
        domain: name of the domain (`training.corpus.domain`).
        recordings: folder of human recordings (`training.corpus.engines.human`).
        sentences: sentences of each split, in training before those for rare words.
        utterances: by split and engine: utterances in training; in a held-out split sentences,
            each in every language of the engine. For human recordings it is the most recordings of
            a language.
        pairs: by engine: utterances of parallel speech by the reference voice, for speaker
            invariance.
        open_sentences: sentences of Tatoeba in each language, which espeak-ng speaks for training.
        longest_seconds: longer utterances are left out.
        seed: seed of the draws.
    """

    domain: Literal["esrt-nano", "esrt-mini"] = "esrt-mini"
    recordings: Path = Path("build/recordings")
    sentences: dict[Split, PositiveInt]
    utterances: dict[Split, dict[str, Count]]
    pairs: dict[str, Count] = Field(default_factory=dict)
    open_sentences: Count = 0
    longest_seconds: PositiveFloat = 12.0
    seed: int = 17


class CacheSettings(Settings):
    """Augmentation and encoding of clips.

    Attributes:
        model: model whose published encoder is run.
        copies: times that an engine's training utterances are augmented and encoded; 1 if not
            named.
        augmentation: changes to the audio of the training split.
        longest_extra_tail: seconds of zeros that are added at most to training speech, after the
            0.3 s that the front end keeps.
        held_out_extra_tail: seconds of zeros that are added to held-out speech.
        bound_gb: largest size of all states.
    """

    model: str = "esrt-mini"
    copies: dict[str, PositiveInt] = Field(default_factory=dict)
    augmentation: Augmentation = Augmentation()
    longest_extra_tail: Annotated[float, Field(ge=0)] = 0.7
    held_out_extra_tail: Annotated[float, Field(ge=0)] = 0.0
    bound_gb: PositiveFloat = 10.0


class CorpusSettings(Settings):
    """The whole file."""

    speech: SpeechSettings
    cache: CacheSettings = CacheSettings()


def read_corpus_settings(path: Path) -> CorpusSettings:
    """Read and validate settings.

    Raises:
        RecipeError: the file is missing, not YAML, or has unknown or wrong settings.
    """
    return read_settings(
        path,
        CorpusSettings,
        "the file",
        "training/corpus/mini.yaml",
        "training/corpus/corpus_settings.py",
    )
