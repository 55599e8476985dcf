"""Cached states of a frozen encoder, as a corpus (`training.cache` writes it)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from esrt.arrays import Float32Array
from esrt.errors import EsrtError
from training.corpus.build import Example
from training.corpus.text import Texts

# States of an utterance or of many, one after the other: (positions, encoder width).
States = NDArray[np.float16]

STATES_FILE, INDEX_FILE, STATISTICS_FILE = "states.npy", "index.jsonl", "statistics.npz"
PARALLEL_STATES_FILE = "parallel_states.npy"
# Least deviation of a dimension, as a share of the median: a constant dimension stays finite.
_LEAST_DEVIATION = 1e-2


class CacheError(EsrtError):
    """A cache of encoder states is missing, incomplete or too large."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each dimension of the states, shape (encoder width,)."""

    mean: Float32Array
    deviation: Float32Array

    @property
    def inverse(self) -> "Statistics":
        """Statistics by which standardized states become the original ones again."""
        one = np.float32(1)
        return Statistics(-self.mean / self.deviation, np.asarray(one / self.deviation))


@dataclass(frozen=True)
class StateCorpus:
    """A split whose utterances are encoder states instead of audio.

    Attributes:
        shards: memory-mapped states.
        examples: the utterances; ``start`` and ``samples`` count states, not samples of audio.
        statistics: by which `speech` standardizes the states; ``None`` leaves them as they are.
        parallel_shards: states of the same utterances by the reference voice, for the numbers of
            the shards that have them.
    """

    shards: tuple[States, ...]
    examples: list[Example]
    statistics: Statistics | None = None
    parallel_shards: Mapping[int, States] = field(default_factory=dict)

    def speech(self, example: Example) -> Float32Array:
        """States of an utterance, shape (positions, encoder width)."""
        return self._standardized(self.shards[example.shard], example)

    def parallel_speech(self, example: Example) -> Float32Array | None:
        """States of an utterance by the reference voice, of the shape of `speech`, if any."""
        states = self.parallel_shards.get(example.shard)
        return None if states is None else self._standardized(states, example)

    def _standardized(self, shard: States, example: Example) -> Float32Array:
        place = slice(example.start, example.start + example.samples)
        states = shard[place].astype(np.float32)
        if self.statistics is None:
            return states
        standardized: Float32Array = (states - self.statistics.mean) / self.statistics.deviation
        return standardized


def load_states(*folders: Path, statistics: Statistics | None = None) -> StateCorpus:
    """Load cached splits as one; each folder has one folder for each shard.

    Raises:
        CacheError: a folder has no shards.
    """
    shards: list[States] = []
    parallel_shards: dict[int, States] = {}
    examples: list[Example] = []
    # Utterances of a sentence share one object, which the tokenizer's training counts on.
    texts: dict[str, Texts] = {}
    for folder in folders:
        places = sorted(path.parent for path in folder.glob(f"*/{INDEX_FILE}"))
        if not places:
            raise CacheError(f"{folder} has no cached states.", "Run: python -m training.cache.")
        for place in places:
            for line in (place / INDEX_FILE).read_text("utf-8").splitlines():
                example = Example(**json.loads(line))
                shared = texts.setdefault(json.dumps(example.texts), example.texts)
                examples.append(replace(example, texts=shared, shard=len(shards)))
            if (place / PARALLEL_STATES_FILE).exists():
                parallel = np.load(place / PARALLEL_STATES_FILE, mmap_mode="r")
                parallel_shards[len(shards)] = parallel
            shards.append(np.load(place / STATES_FILE, mmap_mode="r"))
    return StateCorpus(tuple(shards), examples, statistics, parallel_shards)


def measure(corpus: StateCorpus, utterances: int = 4000) -> Statistics:
    """Measure mean and deviation of each dimension over utterances at even intervals."""
    step = max(1, len(corpus.examples) // utterances)
    count, total, squares = 0, np.float64(0), np.float64(0)
    for example in corpus.examples[::step]:
        states = corpus.speech(example).astype(np.float64)
        count += len(states)
        total = total + states.sum(0)
        squares = squares + np.square(states).sum(0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    floor = _LEAST_DEVIATION * np.median(deviation)
    return Statistics(
        np.asarray(mean, np.float32), np.asarray(np.maximum(deviation, floor), np.float32)
    )


def save_statistics(statistics: Statistics, file: BinaryIO) -> None:
    """Write statistics as an npz file."""
    np.savez(file, mean=statistics.mean, deviation=statistics.deviation)


def load_statistics(path: Path) -> Statistics:
    """Read statistics.

    Raises:
        CacheError: the file is missing.
    """
    try:
        with np.load(path) as arrays:
            return Statistics(arrays["mean"], arrays["deviation"])
    except OSError as error:
        raise CacheError(f"{path} is missing.", "Run: python -m training.cache.") from error
