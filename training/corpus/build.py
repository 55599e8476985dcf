"""Builds the corpus: every utterance's audio, and an index beside it, a folder for each split.

``audio.npy`` holds the samples of all utterances one after the other (int16, 16 kHz),
``index.jsonl`` one sentence a line (its texts, and who says it and where in ``audio.npy``), and
``manifest.json`` the versions it was made with.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from esrt.features import SAMPLE_RATE
from training.corpus.speech import (
    UNSEEN_VARIANTS,
    VARIANTS,
    Samples,
    Utterance,
    espeak_version,
    make_utterance,
    speak,
    stored,
)
from training.corpus.text import Sentence, Texts, split

# A sentence, and its utterances.
SpokenSentence = tuple[Sentence, list[Utterance]]

CORPUS = Path("build/corpus")
_INDEX, _AUDIO, _TWINS = "index.jsonl", "audio.npy", "twins.npy"
SEED = 17
TRAIN_SENTENCES = 3000
HELD_OUT_SENTENCES = {"test": 120, "validation": 20}
# So many of the test sentences, the last ones, are said by the unseen voices.
UNSEEN_SENTENCES = 40


@dataclass(frozen=True)
class Example:
    """An utterance of the built corpus: its place in the audio, who says what, the translations."""

    start: int
    samples: int
    language: str
    variant: str
    kind: str
    texts: Texts


@dataclass(frozen=True)
class Corpus:
    """One split, the audio memory-mapped.

    ``parallel_audio``, where there are any, hold for each utterance the same words at the same pace
    by one voice, at the same place as ``audio`` holds the utterance.
    """

    audio: Samples
    examples: list[Example]
    parallel_audio: Samples | None = None

    def speech(self, example: Example) -> NDArray[np.float32]:
        """The utterance, shape (samples,), in [-1, 1]."""
        return _cut(self.audio, example)

    def twin(self, example: Example) -> NDArray[np.float32]:
        """The same by the one voice; the split has ``parallel_audio``."""
        assert self.parallel_audio is not None
        return _cut(self.parallel_audio, example)

    def only(self, languages: Collection[str]) -> "Corpus":
        """What is said in some languages, with its texts in these."""
        return replace(
            self,
            examples=[
                replace(example, texts={code: example.texts[code] for code in languages})
                for example in self.examples
                if example.language in languages
            ],
        )


def _cut(audio: Samples, example: Example) -> NDArray[np.float32]:
    samples = audio[example.start : example.start + example.samples]
    return samples.astype(np.float32) / np.float32(32768)


def sentences(name: str) -> list[Sentence]:
    """The sentences of a split: ``train``, ``validation`` or ``test``."""
    return _splits()[name]


@cache
def _splits() -> dict[str, list[Sentence]]:
    return split(SEED, HELD_OUT_SENTENCES, TRAIN_SENTENCES)


def utterances(name: str) -> list[SpokenSentence]:
    """Every sentence of a split in every language, each by a speaker of its own."""
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
        SpeechError: espeak-ng is not installed.
    """
    espeak_version()  # before the work, and before other processes are started
    spoken = utterances(name)
    everything = [utterance for _, group in spoken for utterance in group]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        audio = list(
            track(
                pool.map(_samples, everything, chunksize=32),
                description=f"speaking {name}",
                total=len(everything),
            )
        )
    write(folder / name, spoken, audio)


def write(
    place: Path,
    spoken: list[SpokenSentence],
    audio: list[Samples],
    parallel_audio: list[Samples] | None = None,
) -> None:
    """Write a split, whole or not at all.

    Args:
        place: its folder.
        spoken: the sentences and who says them.
        audio: what that sounds like, utterance by utterance.
        parallel_audio: other audio of the same lengths, if any (`Corpus`).
    """
    temporary = place.with_name(f"{place.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    start, following = 0, iter(audio)
    with (temporary / _INDEX).open("w", encoding="utf-8") as index:
        for sentence, group in spoken:
            said = []
            for utterance in group:
                samples = len(next(following))
                row = dataclasses.asdict(utterance) | {"start": start, "samples": samples}
                said.append({key: value for key, value in row.items() if key != "text"})
                start += samples
            line = {"kind": sentence.kind, "texts": sentence.texts, "utterances": said}
            index.write(json.dumps(line, ensure_ascii=False) + "\n")
    np.save(temporary / _AUDIO, np.concatenate(audio))
    if parallel_audio is not None:
        np.save(temporary / _TWINS, np.concatenate(parallel_audio))
    manifest = {
        "seed": SEED,
        "sentences": len(spoken),
        "utterances": len(audio),
        "hours": round(start / SAMPLE_RATE / 3600, 3),
        "babel": version("babel"),
        "espeak-ng": espeak_version(),
    }
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)


def load(folder: Path, name: str) -> Corpus:
    """A split of the corpus; builds it first where that has not been done."""
    place = folder / name
    if not place.exists():
        build(folder, name)
    examples = []
    for line in (place / _INDEX).read_text("utf-8").splitlines():
        row = json.loads(line)
        examples += [
            Example(
                said["start"],
                said["samples"],
                said["language"],
                said["variant"],
                row["kind"],
                row["texts"],
            )
            for said in row["utterances"]
        ]
    audio, parallel_audio = place / _AUDIO, place / _TWINS
    return Corpus(
        np.load(audio, mmap_mode="r"),
        examples,
        np.load(parallel_audio, mmap_mode="r") if parallel_audio.exists() else None,
    )


def _samples(utterance: Utterance) -> Samples:
    return stored(speak(utterance))
