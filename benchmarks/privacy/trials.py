"""Equal error rate and identification accuracy, with intervals by resampling speakers."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

RESAMPLES = 300


@dataclass(frozen=True)
class Estimate:
    """A figure in percent and its 95 % interval."""

    value: float
    low: float
    high: float

    def json(self) -> dict[str, float]:
        """The figures as JSON."""
        return {key: round(value, 2) for key, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class Trials:
    """Comparisons of two utterances: the score, higher for one speaker, and the two speakers."""

    score: Array
    left: Rows
    right: Rows

    def equal_error_rate(self) -> Estimate:
        """Error rate at the threshold where false-rejection and false-acceptance rates are equal.

        The interval resamples speakers, because comparisons are not independent.
        """
        order = np.argsort(self.score)
        left, right = self.left[order], self.right[order]
        same, speakers = left == right, int(max(left.max(), right.max())) + 1
        present = np.unique(left)
        random = np.random.default_rng(0)

        def of(counts: Array) -> float:
            weight = np.where(same, counts[left], counts[left] * counts[right])
            missed = np.cumsum(weight * same)
            false = np.cumsum((weight * ~same)[::-1])[::-1]
            miss, alarm = missed / missed[-1], false / false[0]
            place = int(np.argmax(miss >= alarm))
            return float(50 * (miss[place] + alarm[place]))

        drawn = [
            of(np.bincount(random.choice(present, len(present)), minlength=speakers).astype(float))
            for _ in range(RESAMPLES)
        ]
        return _estimate(of(np.bincount(present, minlength=speakers).astype(float)), drawn)


def pairs(embedding: Array, speaker: Rows, sentence: Rows) -> Trials:
    """Compare all pairs of utterances of different sentences by the cosine of embeddings."""
    unit = _unit(embedding)
    left, right = np.triu_indices(len(unit), 1)
    different = sentence[left] != sentence[right]
    left, right = left[different], right[different]
    return Trials((unit @ unit.T)[left, right], speaker[left], speaker[right])


def enrolled(embedding: Array, speaker: Rows, sentence: Rows, sentences: int) -> Trials:
    """Compare the mean of each speaker's first sentences with every remaining utterance."""
    known = np.unique(sentence)[:sentences]
    names, first = np.unique(speaker), np.isin(sentence, known)
    unit = _unit(embedding)
    model = _unit(np.stack([unit[first & (speaker == name)].mean(axis=0) for name in names]))
    scores = model @ unit[~first].T
    left = np.broadcast_to(names[:, None], scores.shape)
    right = np.broadcast_to(speaker[~first], scores.shape)
    return Trials(scores.ravel(), left.ravel(), right.ravel())


def accuracy(correct: NDArray[np.bool_], speaker: Rows) -> Estimate:
    """Share of utterances whose speaker was identified, each speaker with equal weight."""
    names = np.unique(speaker)
    share = np.array([correct[speaker == name].mean() for name in names])
    random = np.random.default_rng(0)
    drawn = [100 * float(random.choice(share, len(share)).mean()) for _ in range(RESAMPLES)]
    return _estimate(100 * float(share.mean()), drawn)


def _unit(rows: Array) -> Array:
    unit: Array = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return unit


def _estimate(value: float, drawn: list[float]) -> Estimate:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value, float(low), float(high))
