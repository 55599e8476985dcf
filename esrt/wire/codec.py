"""Names in a packet's header, and the check that all codecs share."""

from enum import StrEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from esrt.errors import PacketContentError

RE_ENCODE = "Encode the features again with an encoder that follows docs/wire-format.md."
CHECK_MODEL = "Check the audio and the encoder that made these features."


class _WireName(StrEnum):
    """A name that a packet's header holds as one byte, its `wire_id`."""

    wire_id: int

    def __new__(cls, name: str, wire_id: int) -> Self:
        member = str.__new__(cls, name)
        member._value_ = name
        member.wire_id = wire_id
        return member


class Split(_WireName):
    """Split point of the model: after the Q-Former, or after the projector ("adapter")."""

    QFORMER = "qformer", 0
    ADAPTER = "adapter", 1


class Codec(_WireName):
    """Codec of the features in a packet's payload."""

    FP16 = "fp16", 0
    INT8 = "int8", 1
    INT4 = "int4", 2
    KLT = "klt", 3
    KLT_LOW = "klt-low", 4

    @property
    def uses_tables(self) -> bool:
        """Whether this is a transform codec, which needs a checkpoint's codec tables."""
        return self in (Codec.KLT, Codec.KLT_LOW)


def reject_values(
    bad: npt.NDArray[np.bool_],
    values: npt.NDArray[np.floating[Any]] | npt.NDArray[np.integer[Any]],
    noun: str,
    expected: str,
    remedy: str,
) -> None:
    """Reject features if one of their values is bad.

    Args:
        bad: mask in the shape of `values`.
        values: the values, for the message.
        noun: name of a value in the message.
        expected: valid values in the message.
        remedy: remedy in the message.

    Raises:
        PacketContentError: `bad` is true somewhere; the message shows the first such value.
    """
    if bad.any():
        place = np.unravel_index(int(bad.argmax()), bad.shape)
        index = ", ".join(str(i) for i in place)
        raise PacketContentError(
            f"The {noun} at [{index}] is {values[place]}, expected {expected}.", remedy
        )
