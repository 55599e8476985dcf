"""Builds the corpus: every utterance's log-mel, and an index beside it, a folder for each split.

``mel.npy`` holds the frames of all utterances one after the other (float16, 128 mel bins),
``index.jsonl`` one utterance a line (where its frames lie, what is said, the translations), and
``manifest.json`` the versions it was made with.
"""

import dataclasses
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from esrt import frontend
from esrt.config import named_config
from training.corpus.speech import Utterance, cast, espeak_version, speak
from training.corpus.text import Sentence, Texts, split

CORPUS = Path("build/corpus")
SEED = 17
TRAIN_SENTENCES = 6000
HELD_OUT_SENTENCES = {"test": 150, "validation": 40}


@dataclass(frozen=True)
class Example:
    """An utterance of the built corpus: its place in the array, and its sentence's texts."""

    start: int
    frames: int
    language: str
    kind: str
    texts: Texts


@dataclass(frozen=True)
class Corpus:
    """One split, the log-mels memory-mapped."""

    mel: NDArray[np.float16]
    examples: list[Example]

    def log_mel(self, example: Example) -> NDArray[np.float16]:
        """Shape (frames, 128)."""
        return self.mel[example.start : example.start + example.frames]


def utterances(sentences: list[Sentence], seed: int) -> list[tuple[Sentence, Utterance]]:
    """Every sentence in every language, each by a speaker of its own."""
    random = Random(seed)
    return [
        (sentence, cast(code, text, random))
        for sentence in sentences
        for code, text in sentence.texts.items()
    ]


def sentences(name: str) -> list[Sentence]:
    """The sentences of a split: ``train``, ``validation`` or ``test``."""
    return split(SEED, HELD_OUT_SENTENCES, TRAIN_SENTENCES)[name]


def build(folder: Path, name: str) -> None:
    """Write one split to ``folder/name``, whole or not at all.

    Raises:
        SpeechError: espeak-ng is not installed.
    """
    espeak = espeak_version()  # before the work, and before other processes are started
    spoken = utterances(sentences(name), SEED)
    temporary = folder / f"{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        mels = list(
            track(
                pool.map(_mel, [utterance for _, utterance in spoken], chunksize=32),
                description=f"speaking {name}",
                total=len(spoken),
            )
        )
    start = 0
    with (temporary / "index.jsonl").open("w", encoding="utf-8") as index:
        for (sentence, utterance), mel in zip(spoken, mels, strict=True):
            language = utterance.language
            example = Example(start, len(mel), language, sentence.kind, sentence.texts)
            index.write(json.dumps(dataclasses.asdict(example), ensure_ascii=False) + "\n")
            start += len(mel)
    np.save(temporary / "mel.npy", np.concatenate(mels))
    manifest = {
        "seed": SEED,
        "utterances": len(spoken),
        "hours": round(start / frontend.FRAMES_PER_SECOND / 3600, 3),
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
    lines = (place / "index.jsonl").read_text("utf-8").splitlines()
    return Corpus(
        np.load(place / "mel.npy", mmap_mode="r"),
        [Example(**json.loads(line)) for line in lines],
    )


def _mel(utterance: Utterance) -> NDArray[np.float16]:
    multiple = named_config("esrt-nano").frame_multiple
    return frontend.features(speak(utterance), frame_multiple=multiple).T.astype(np.float16)
