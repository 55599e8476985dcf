"""Builds the corpus: audio and an index, in one folder for each split.

``audio.npy`` holds the samples of all utterances, one after the other (int16, 16 kHz).
``index.jsonl`` has one sentence a line: texts, speakers, and places in ``audio.npy``.
``manifest.json`` records the seed and the versions of the tools.
"""

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from random import Random

import msgspec
import numpy as np

from esrt.arrays import Float32Array
from esrt.features import SAMPLE_RATE
from esrt.files import replace_folder
from esrt.speech import DEFAULT_SETTINGS, find_speech, trim_and_level
from training.corpus.domain import NANO
from training.corpus.speech import (
    UNSEEN_VARIANTS,
    VARIANTS,
    Samples,
    Utterance,
    espeak_version,
    make_utterance,
    speak_parallel,
)
from training.corpus.splits import draw_splits
from training.corpus.text import Sentence, Texts

# A sentence, and its utterances.
SpokenSentence = tuple[Sentence, list[Utterance]]

CORPUS = Path("build/corpus")
SPLITS = ("test", "validation", "train")
SEED = 17
TRAIN_SENTENCES = 3000
HELD_OUT_SENTENCES = {"test": 120, "validation": 20}
# Number of test sentences, the last ones, that unseen voices speak.
UNSEEN_SENTENCES = 40
# Kinds of examples beside those of sentences: a transcript without translations from outside of the
# domain, and sound that is not speech, with an empty transcript.
OPEN, NON_SPEECH = "open", "non-speech"
PARALLEL_AUDIO = "parallel_audio.npy"
_INDEX, _AUDIO = "index.jsonl", "audio.npy"


@dataclass(frozen=True)
class Example:
    """Utterance of a built corpus.

    Attributes:
        start: first sample in the split's audio.
        samples: number of samples.
        language: ISO 639-3 code of the spoken language.
        variant: name of the voice.
        kind: kind of the sentence (`Sentence`), `OPEN` or `NON_SPEECH`.
        texts: transcript and translations, by language.
        engine: what spoke: a folder's name in the corpus of esrt-mini.
        shard: number of the file that ``start`` refers to, in a corpus of several.
    """

    start: int
    samples: int
    language: str
    variant: str
    kind: str
    texts: Texts
    engine: str = "espeak"
    shard: int = 0


@dataclass(frozen=True)
class Corpus:
    """A split with memory-mapped audio.

    Attributes:
        audio: samples of all utterances.
        examples: the utterances.
        parallel_audio: the same utterances by the reference voice, at the same places; ``None`` if
            the split has none.
    """

    audio: Samples
    examples: list[Example]
    parallel_audio: Samples | None = None

    def recording(self, example: Example) -> Float32Array:
        """Audio of an utterance as recorded, shape (samples,)."""
        return _cut(self.audio, example)

    def speech(self, example: Example) -> Float32Array:
        """Audio of an utterance as the front end prepares it, shape (samples,)."""
        return trim_and_level(self.recording(example), DEFAULT_SETTINGS)

    def parallel_speech(self, example: Example) -> Float32Array:
        """Audio by the reference voice, cut as `speech`; needs ``parallel_audio``."""
        return trim_pair(self.recording(example), self.parallel_recording(example))[1]

    def parallel_recording(self, example: Example) -> Float32Array:
        """Audio by the reference voice as recorded; needs ``parallel_audio``."""
        assert self.parallel_audio is not None
        return _cut(self.parallel_audio, example)

    def in_languages(self, languages: Collection[str]) -> "Corpus":
        """Select the utterances and the texts in some languages."""
        return replace(
            self,
            examples=[
                replace(example, texts={code: example.texts[code] for code in languages})
                for example in self.examples
                if example.language in languages
            ],
        )


def trim_pair(audio: Float32Array, parallel: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Pass an utterance through the front end, and parallel audio through one that cuts alike.

    The offset and the gain of the parallel audio are its own.

    Args:
        audio: shape (samples,).
        parallel: shape (samples,).

    Returns:
        Two arrays of one shape, (speech samples,).
    """
    bounds, own = (find_speech(one, DEFAULT_SETTINGS) for one in (audio, parallel))
    if bounds is None or own is None:
        return audio, parallel
    own = msgspec.structs.replace(own, start=bounds.start, stop=bounds.stop)
    return bounds.apply(audio), own.apply(parallel)


def _cut(audio: Samples, example: Example) -> Float32Array:
    samples = audio[example.start : example.start + example.samples]
    return samples.astype(np.float32) / np.float32(32768)


@cache
def _splits() -> dict[str, list[Sentence]]:
    return draw_splits(NANO, SEED, HELD_OUT_SENTENCES, TRAIN_SENTENCES)


def sentences(name: str) -> list[Sentence]:
    """Sentences of a split: ``train``, ``validation`` or ``test``."""
    return _splits()[name]


def utterances(name: str) -> list[SpokenSentence]:
    """Give every sentence of a split a random speaker in every language."""
    random, drawn = Random(SEED), sentences(name)
    known = len(drawn) - UNSEEN_SENTENCES if name == "test" else len(drawn)
    return [
        (
            sentence,
            [
                make_utterance(code, text, random, VARIANTS if number < known else UNSEEN_VARIANTS)
                for code, text in sentence.texts.items()
            ],
        )
        for number, sentence in enumerate(drawn)
    ]


def build(folder: Path, name: str) -> None:
    """Write one split to ``folder/name``, whole or not at all.

    Raises:
        SpeechError: espeak-ng is not installed, or failed.
    """
    espeak_version()  # fails before the work begins, in this process
    spoken = utterances(name)
    flat = [utterance for _, group in spoken for utterance in group]
    write_split(folder / name, spoken, speak_parallel(flat, f"speaking {name}"))


def write_split(
    folder: Path,
    spoken: list[SpokenSentence],
    audio: list[Samples],
    parallel_audio: list[Samples] | None = None,
) -> None:
    """Write a split, whole or not at all.

    Args:
        folder: the split's folder.
        spoken: sentences and utterances.
        audio: samples of each utterance.
        parallel_audio: samples of the reference voice, of the same lengths, if any (`Corpus`).
    """
    start, remaining = 0, iter(audio)
    with replace_folder(folder) as partial:
        with (partial / _INDEX).open("w", encoding="utf-8") as index:
            for sentence, group in spoken:
                rows = []
                for utterance in group:
                    samples = len(next(remaining))
                    row = dataclasses.asdict(utterance) | {"start": start, "samples": samples}
                    rows.append({key: value for key, value in row.items() if key != "text"})
                    start += samples
                line = {"kind": sentence.kind, "texts": sentence.texts, "utterances": rows}
                index.write(json.dumps(line, ensure_ascii=False) + "\n")
        np.save(partial / _AUDIO, np.concatenate(audio))
        if parallel_audio is not None:
            np.save(partial / PARALLEL_AUDIO, np.concatenate(parallel_audio))
        manifest = {
            "seed": SEED,
            "sentences": len(spoken),
            "utterances": len(audio),
            "hours": round(start / SAMPLE_RATE / 3600, 3),
            "babel": version("babel"),
            "espeak-ng": espeak_version(),
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def load(folder: Path, name: str) -> Corpus:
    """Load a split of the corpus; build it if it is missing.

    Raises:
        SpeechError: the split is missing, and espeak-ng is not installed.
    """
    place = folder / name
    if not place.exists():
        build(folder, name)
    examples = []
    for line in (place / _INDEX).read_text("utf-8").splitlines():
        sentence = json.loads(line)
        examples += [
            Example(
                row["start"],
                row["samples"],
                row["language"],
                row["variant"],
                sentence["kind"],
                sentence["texts"],
            )
            for row in sentence["utterances"]
        ]
    parallel = place / PARALLEL_AUDIO
    return Corpus(
        np.load(place / _AUDIO, mmap_mode="r"),
        examples,
        np.load(parallel, mmap_mode="r") if parallel.exists() else None,
    )
