"""The names that travel in a packet, and what every codec shares."""

from enum import StrEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from esrt.errors import PacketContentError

RE_ENCODE = "Encode the features again with an encoder that follows docs/wire-format.md."
CHECK_MODEL = "Check the audio and the encoder that made these features."


class _WireName(StrEnum):
    """A name that travels as one byte: its `wire_id`."""

    wire_id: int

    def __new__(cls, name: str, wire_id: int) -> Self:
        member = str.__new__(cls, name)
        member._value_ = name
        member.wire_id = wire_id
        return member


class Split(_WireName):
    """Where the model is cut: after the Q-Former, or after the projector ("adapter")."""

    QFORMER = "qformer", 0
    ADAPTER = "adapter", 1


class Codec(_WireName):
    """How the features are written as bytes."""

    FP16 = "fp16", 0
    INT8 = "int8", 1
    INT4 = "int4", 2
    KLT = "klt", 3
    KLT_LOW = "klt-low", 4

    @property
    def uses_tables(self) -> bool:
        """Whether it needs the statistics of a checkpoint."""
        return self in (Codec.KLT, Codec.KLT_LOW)


def refuse(
    bad: npt.NDArray[np.bool_],
    values: npt.NDArray[np.floating[Any]] | npt.NDArray[np.integer[Any]],
    noun: str,
    expected: str,
    remedy: str,
) -> None:
    """Compare values with what a codec can carry.

    Raises:
        PacketContentError: for the first True of `bad`, which has the shape of `values`.
    """
    if bad.any():
        place = np.unravel_index(int(bad.argmax()), bad.shape)
        index = ", ".join(str(i) for i in place)
        raise PacketContentError(
            f"The {noun} at [{index}] is {values[place]}, expected {expected}.", remedy
        )
