"""Augmentation of standardized encoder states."""

import numpy as np
from numpy.random import Generator

from esrt.arrays import Float32Array
from training.recipe import StateAugmentation


def augment_states(
    states: Float32Array, settings: StateAugmentation, random: Generator
) -> Float32Array:
    """Augment the states of an utterance at random.

    Args:
        states: standardized states, shape (positions, width).
        settings: kinds and strengths.
        random: generator of the draws.
    """
    positions, width = states.shape
    scale = 1 + settings.scale * random.standard_normal(width)
    offset = settings.offset * random.standard_normal(width)
    kept = random.random(width) >= settings.dropped
    augmented = (states * scale + offset) * kept
    for _ in range(settings.masks):
        start = int(random.integers(0, max(1, positions - settings.mask_states + 1)))
        augmented[start : start + settings.mask_states] = 0
    return np.asarray(augmented, np.float32)
