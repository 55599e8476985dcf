"""Input lengths of an artifact, from ``--seconds``: every length, one, or several."""

import dataclasses
from collections.abc import Sequence

from esrt.config import ModelConfig
from esrt.errors import ArtifactError
from esrt.features import FRAMES_PER_SECOND


def resolve_frames(config: ModelConfig, seconds: Sequence[float]) -> tuple[int, ...]:
    """Convert lengths to mel frames, rounded up to the model's blocks, in rising order.

    Without ``seconds``: the padded length of a padded model, else an empty tuple, which means every
    length.

    Raises:
        ArtifactError: the model does not take a length, or was trained on audio padded to another.
    """
    if config.padded:
        if any(value != config.max_seconds for value in seconds):
            raise ArtifactError(
                f"{config.name} was trained on audio padded to {config.max_seconds:g} s.",
                f"Leave --seconds off, or use --seconds {config.max_seconds:g}.",
            )
        return (config.max_frames,)
    multiple = config.frame_multiple
    frames = set()
    for value in seconds:
        # Rounded first, because 0.56 * 100 is above 56 in floating point. The comparison rejects
        # NaN and infinity.
        blocks = -(-round(value * FRAMES_PER_SECOND, 6) // multiple)
        if not 1 <= blocks * multiple <= config.max_frames:
            raise ArtifactError(
                f"{config.name} does not take {value:g} s.",
                f"Use lengths above 0 and up to {config.max_frames / FRAMES_PER_SECOND:g} s.",
            )
        frames.add(int(blocks) * multiple)
    return tuple(sorted(frames))


def restrict_lengths(config: ModelConfig, frames: Sequence[int]) -> ModelConfig:
    """Return the configuration of a graph for these lengths only.

    A single length makes the model padded; several lengths bound the speech by the longest.
    """
    if not frames:
        return config
    seconds = max(frames) / FRAMES_PER_SECOND
    return dataclasses.replace(config, padded=len(frames) == 1, max_seconds=seconds)
