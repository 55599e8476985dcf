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

from esrt.frontend import SAMPLE_RATE
from training.corpus.speech import UNSEEN_VARIANTS, VARIANTS, Utterance, cast, espeak_version, speak
from training.corpus.text import Sentence, Texts, split

CORPUS = Path("build/corpus")
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
    """One split, the audio memory-mapped."""

    audio: NDArray[np.int16]
    examples: list[Example]

    def speech(self, example: Example) -> NDArray[np.float32]:
        """The utterance, shape (samples,), in [-1, 1]."""
        samples = self.audio[example.start : example.start + example.samples]
        return samples.astype(np.float32) / np.float32(32768)

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


def sentences(name: str) -> list[Sentence]:
    """The sentences of a split: ``train``, ``validation`` or ``test``."""
    return _splits()[name]


@cache
def _splits() -> dict[str, list[Sentence]]:
    return split(SEED, HELD_OUT_SENTENCES, TRAIN_SENTENCES)


def utterances(name: str) -> list[tuple[Sentence, list[Utterance]]]:
    """Every sentence of a split in every language, each by a speaker of its own."""
    random, drawn = Random(SEED), sentences(name)
    known = len(drawn) - UNSEEN_SENTENCES if name == "test" else len(drawn)
    return [
        (
            sentence,
            [
                cast(code, text, random, VARIANTS if number < known else UNSEEN_VARIANTS)
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
    espeak = espeak_version()  # before the work, and before other processes are started
    spoken = utterances(name)
    temporary = folder / f"{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    everything = [utterance for _, group in spoken for utterance in group]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        audio = list(
            track(
                pool.map(_samples, everything, chunksize=32),
                description=f"speaking {name}",
                total=len(everything),
            )
        )
    start, place = 0, iter(audio)
    with (temporary / "index.jsonl").open("w", encoding="utf-8") as index:
        for sentence, group in spoken:
            said = []
            for utterance in group:
                samples = len(next(place))
                row = dataclasses.asdict(utterance) | {"start": start, "samples": samples}
                said.append({key: value for key, value in row.items() if key != "text"})
                start += samples
            line = {"kind": sentence.kind, "texts": sentence.texts, "utterances": said}
            index.write(json.dumps(line, ensure_ascii=False) + "\n")
    np.save(temporary / "audio.npy", np.concatenate(audio))
    manifest = {
        "seed": SEED,
        "sentences": len(spoken),
        "utterances": len(everything),
        "hours": round(start / SAMPLE_RATE / 3600, 3),
        "babel": version("babel"),
        "espeak-ng": espeak,
    }
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    shutil.rmtree(folder / name, ignore_errors=True)
    temporary.rename(folder / name)


def load(folder: Path, name: str) -> Corpus:
    """A split of the corpus; builds it first where that has not been done."""
    place = folder / name
    if not place.exists():
        build(folder, name)
    examples = []
    for line in (place / "index.jsonl").read_text("utf-8").splitlines():
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
    return Corpus(np.load(place / "audio.npy", mmap_mode="r"), examples)


def _samples(utterance: Utterance) -> NDArray[np.int16]:
    return np.round(np.clip(speak(utterance), -1, 1) * 32767).astype(np.int16)
