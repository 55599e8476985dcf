"""What a device could do to an utterance's features before they are packed, without retraining.

Each transformation is learned from the features of the attackers' training speakers, and the
attackers are trained on what it leaves.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.privacy.representations import Array, Sequences

Transform = Callable[[Array], Array]


def centred(features: Sequences, rows: NDArray[np.int64]) -> Transform:
    """Puts the mean over all speech in the place of each utterance's own mean."""
    mean = np.concatenate([features[row] for row in rows]).mean(axis=0)
    return lambda one: one - one.mean(axis=0) + mean


def without_directions(
    features: Sequences, rows: NDArray[np.int64], speaker: NDArray[np.int64], count: int
) -> Transform:
    """Flattens the directions along which the speakers' mean features differ most.

    Args:
        features: Q-Former output, one sequence for each utterance.
        rows: the utterances to learn from.
        speaker: who says each of these.
        count: directions to flatten.
    """
    means = np.stack([features[row].mean(axis=0) for row in rows])
    speakers = np.stack([means[speaker == name].mean(axis=0) for name in np.unique(speaker)])
    mean = speakers.mean(axis=0)
    directions = np.linalg.svd(speakers - mean, full_matrices=False)[2][:count]
    return lambda one: one - (one - mean) @ directions.T @ directions


def both(first: Transform, second: Transform) -> Transform:
    """One after the other."""
    return lambda one: second(first(one))
