"""The feature packet, version 1: float32 features to bytes and back.

`docs/wire-format.md` is normative and this module follows it. Decoding is total: any bytes give a
`Packet` or a `PacketError`, and never allocate more than 16 MB.
"""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from esrt.errors import PacketContentError, PacketError, PacketTooLarge

MEDIA_TYPE = "application/vnd.esrt.features"
MAX_PACKET_BYTES = 1 << 20
# The shape bounds what a decoder allocates, so it is bounded on its own: a codec whose payload size
# does not follow from the shape could otherwise announce gigabytes in a few bytes.
MAX_TOKENS = 2048
MAX_WIDTH = 8192
MAX_VALUES = 1 << 20

MAGIC = b"ESRT"
VERSION = 1
_HEADER = struct.Struct("<4sBBBB8sHHIII")
HEADER_BYTES = _HEADER.size
_CHECKED_BYTES = HEADER_BYTES - 4  # the checksum is the header's last field and covers the rest

_HALF: np.dtype[np.float16] = np.dtype("<f2")
_FP16_MAX = 65504.0
_INT8_MAX = 127
_INT4_MAX = 7
_MAX_DURATION_MS = (1 << 32) - 1
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")

_RESEND = "Send the encoder's bytes unchanged, as one binary body."
_RE_ENCODE = "Encode the features again with an encoder that follows docs/wire-format.md."
_CHECK_MODEL = "Check the audio and the encoder that made these features."

Features = npt.NDArray[np.float32]


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


@dataclass(frozen=True, eq=False)  # a generated == would ask an array for one truth value
class Packet:
    """A decoded packet.

    Attributes:
        features: float32, (tokens, width), all finite.
        fingerprint: 16 lower-case hex digits that name the encoder that made the features.
        split: which of the model's outputs the features are.
        codec: how they were written.
        duration_ms: length of the speech behind them, in milliseconds; 0 where unknown.
    """

    features: Features
    fingerprint: str
    split: Split
    codec: Codec
    duration_ms: int


def encode(
    features: npt.NDArray[np.floating[Any]],
    *,
    fingerprint: str,
    split: Split | str,
    codec: Codec | str,
    duration_ms: int,
) -> bytes:
    """Writes features as one packet.

    Args:
        features: (tokens, width), a floating type; taken as float32.
        fingerprint: 16 lower-case hex digits.
        split: where the features were taken from.
        codec: how to write them.
        duration_ms: length of the speech, in milliseconds; 0 where unknown.

    Raises:
        PacketContentError: an argument that no packet can carry: not two-dimensional, no values,
            not finite, beyond the codec's range, or a bad field.
        PacketTooLarge: more tokens, width, values or bytes than a packet may have.
    """
    split, codec = _by_name(Split, split), _by_name(Codec, codec)
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise PacketContentError(
            f"The fingerprint is {fingerprint!r}, expected 16 lower-case hex digits.",
            "Take it from the artifact's manifest.",
        )
    if not 0 <= duration_ms <= _MAX_DURATION_MS:
        raise PacketContentError(
            f"The duration is {duration_ms} ms, expected 0 to {_MAX_DURATION_MS}.",
            "Give the length of the speech in milliseconds.",
        )
    values = _as_float32(features)
    tokens, width = values.shape
    payload = _CODECS[codec].encode(values)
    _check_size(HEADER_BYTES + len(payload))
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        split.wire_id,
        codec.wire_id,
        0,
        bytes.fromhex(fingerprint),
        tokens,
        width,
        duration_ms,
        len(payload),
        0,
    )[:_CHECKED_BYTES]
    return header + struct.pack("<I", zlib.crc32(payload, zlib.crc32(header))) + payload


def decode(data: bytes) -> Packet:
    """Reads one packet; allocates at most 16 MB whatever the header claims.

    The frame is checked before any field is interpreted, so that damage on the way is reported as
    damage and not as, say, an unknown codec.

    Raises:
        PacketError: the bytes are damaged, or not a packet of this version (status 400).
        PacketTooLarge: the packet or its shape is beyond the format's limits (status 413).
        PacketContentError: well-formed, but without values or with values not finite (status 422).
    """
    _check_size(len(data))
    view = memoryview(data)
    if len(view) < HEADER_BYTES:
        raise PacketError(
            f"The packet has {len(view)} bytes, expected a header of {HEADER_BYTES}.", _RESEND
        )
    (magic, version, split_id, codec_id, flags, fingerprint, tokens, width, duration_ms,
     payload_bytes, checksum) = _HEADER.unpack_from(view)  # fmt: skip
    payload = view[HEADER_BYTES:]
    if magic != MAGIC:
        raise PacketError(f"The packet begins with {magic!r}, expected {MAGIC!r}.", _RESEND)
    if version != VERSION:
        raise PacketError(
            f"The packet is of version {version}, expected {VERSION}.",
            "Update the older of the two sides.",
        )
    if flags != 0:
        raise PacketError(f"The reserved flags are {flags:#04x}, expected 0x00.", _RE_ENCODE)
    if len(payload) != payload_bytes:
        raise PacketError(
            f"The payload has {len(payload)} bytes, expected {payload_bytes} as in the header.",
            _RESEND,
        )
    found = zlib.crc32(payload, zlib.crc32(view[:_CHECKED_BYTES]))
    if found != checksum:
        raise PacketError(
            f"The checksum of the bytes is {found:#010x}, expected {checksum:#010x}.", _RESEND
        )
    split, codec = _by_wire_id(Split, split_id), _by_wire_id(Codec, codec_id)
    _check_shape(tokens, width)
    expected = payload_size(codec, tokens, width)
    if expected is not None and len(payload) != expected:
        raise PacketError(
            f"The payload has {len(payload)} bytes, expected {expected}"
            f" for {tokens} x {width} in {codec}.",
            _RE_ENCODE,
        )
    features = _CODECS[codec].decode(payload, tokens, width)
    return Packet(features, fingerprint.hex(), split, codec, duration_ms)


def payload_size(codec: Codec, tokens: int, width: int) -> int | None:
    """Bytes after the header for this shape; None where they depend on the values."""
    size = _CODECS[codec].payload_size
    return None if size is None else size(tokens, width)


# --- Codecs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CodecImplementation:
    """One way to write features. To add a codec: a member of `Codec` and a row of `_CODECS`.

    Attributes:
        payload_size: bytes for (tokens, width), enforced before `decode`; None for a codec whose
            size depends on the values, which then checks the length itself.
        encode: float32 features, finite and of a legal shape, to the payload.
        decode: (payload, tokens, width) to float32 features, or a `PacketError`; it may allocate
            a few arrays of the shape, no more.
    """

    payload_size: Callable[[int, int], int] | None
    encode: Callable[[Features], bytes]
    decode: Callable[[memoryview, int, int], Features]


def _fp16_size(tokens: int, width: int) -> int:
    return 2 * tokens * width


def _fp16_encode(features: Features) -> bytes:
    beyond = np.abs(features) > _FP16_MAX
    _refuse(beyond, features, "value", "at most 65504 in size for fp16", "Use the int8 codec.")
    return features.astype(_HALF).tobytes()


def _fp16_decode(payload: memoryview, tokens: int, width: int) -> Features:
    features = np.frombuffer(payload, _HALF).astype(np.float32).reshape(tokens, width)
    _refuse(~np.isfinite(features), features, "value", "a finite number", _CHECK_MODEL)
    return features


def _int8_size(tokens: int, width: int) -> int:
    return 2 * tokens + tokens * width


def _int8_encode(features: Features) -> bytes:
    scales, quantized = _quantized(features, _INT8_MAX)
    return scales + quantized.tobytes()


def _int8_decode(payload: memoryview, tokens: int, width: int) -> Features:
    quantized = np.frombuffer(payload, np.int8, offset=2 * tokens).reshape(tokens, width)
    return quantized * _scales(payload, tokens)


def _int4_size(tokens: int, width: int) -> int:
    return 2 * tokens + (tokens * width + 1) // 2


def _int4_encode(features: Features) -> bytes:
    scales, quantized = _quantized(features, _INT4_MAX)
    nibbles = quantized.ravel().astype(np.uint8) & 0xF
    if nibbles.size % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return scales + (nibbles[::2] | nibbles[1::2] << 4).tobytes()


def _int4_decode(payload: memoryview, tokens: int, width: int) -> Features:
    pairs = np.frombuffer(payload, np.int8, offset=2 * tokens)
    nibbles = np.stack([pairs << 4 >> 4, pairs >> 4], axis=1).ravel()  # >> keeps the sign
    filling = nibbles[tokens * width :]
    _refuse(filling != 0, filling, "half byte after the last value", "0", _RE_ENCODE)
    return nibbles[: tokens * width].reshape(tokens, width) * _scales(payload, tokens)


def _quantized(features: Features, largest: int) -> tuple[bytes, npt.NDArray[np.int8]]:
    """Scales as they are written, and the values in steps of them, `largest` at most."""
    exact: Features = np.abs(features).max(axis=1) / np.float32(largest)
    _refuse(exact > _FP16_MAX, exact, "scale", "at most fp16's 65504", _CHECK_MODEL)
    scales = exact.astype(_HALF)
    # Quantizing with the scale that the decoder will see keeps the error within half a step; where
    # that scale was rounded down, the largest values pass the largest step by a little and are
    # clipped.
    steps = scales.astype(np.float32)
    steps[steps == 0] = 1  # every value of such a token is far below 0.5
    rounded: Features = np.rint(features / steps[:, np.newaxis])
    return scales.tobytes(), rounded.clip(-largest, largest).astype(np.int8)


def _scales(payload: memoryview, tokens: int) -> Features:
    """The scales that a payload begins with: (tokens, 1)."""
    scales = np.frombuffer(payload, _HALF, count=tokens).astype(np.float32)
    _refuse(~np.isfinite(scales), scales, "scale", "a finite number", _CHECK_MODEL)
    _refuse(np.signbit(scales), scales, "scale", "no sign bit", _RE_ENCODE)
    return scales[:, np.newaxis]


_CODECS = {
    Codec.FP16: _CodecImplementation(_fp16_size, _fp16_encode, _fp16_decode),
    Codec.INT8: _CodecImplementation(_int8_size, _int8_encode, _int8_decode),
    Codec.INT4: _CodecImplementation(_int4_size, _int4_encode, _int4_decode),
}


# --- Checks that both directions share ----------------------------------------------------------

_Name = TypeVar("_Name", bound=_WireName)


def _by_name(kind: type[_Name], name: str) -> _Name:
    for member in kind:
        if member == name:
            return member
    names = ", ".join(kind)
    field = kind.__name__.lower()
    raise PacketContentError(f"There is no {field} {name!r}.", f"Use one of: {names}.")


def _by_wire_id(kind: type[_Name], wire_id: int) -> _Name:
    for member in kind:
        if member.wire_id == wire_id:
            return member
    known = ", ".join(f"{member.wire_id} ({member})" for member in kind)
    field = kind.__name__.lower()
    raise PacketError(
        f"The {field} id is {wire_id}, expected one of {known}.",
        f"Use a {field} that both sides know.",
    )


def _check_size(size: int) -> None:
    if size > MAX_PACKET_BYTES:
        raise PacketTooLarge(
            f"The packet has {size} bytes, expected at most {MAX_PACKET_BYTES}.",
            "Send shorter speech or use a smaller codec.",
        )


def _check_shape(tokens: int, width: int) -> None:
    if tokens == 0 or width == 0:
        raise PacketContentError(
            f"The features are {tokens} x {width}, expected at least one token and one value.",
            _CHECK_MODEL,
        )
    if tokens > MAX_TOKENS or width > MAX_WIDTH or tokens * width > MAX_VALUES:
        raise PacketTooLarge(
            f"The features are {tokens} x {width}, expected at most {MAX_TOKENS} tokens,"
            f" a width of {MAX_WIDTH} and {MAX_VALUES} values.",
            "Send shorter speech.",
        )


def _as_float32(features: npt.NDArray[np.floating[Any]]) -> Features:
    array = np.asarray(features)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise PacketContentError(
            f"The features are {array.dtype} of shape {array.shape},"
            " expected a floating type of shape (tokens, width).",
            "Pass one utterance's features, without a batch axis.",
        )
    _check_shape(*array.shape)
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, refused next
        values = array.astype(np.float32)
    _refuse(~np.isfinite(values), array, "value", "a finite float32", _CHECK_MODEL)
    return values


def _refuse(
    bad: npt.NDArray[np.bool_],
    values: npt.NDArray[np.floating[Any]],
    noun: str,
    expected: str,
    remedy: str,
) -> None:
    """Raises for the first True of `bad`, which has the shape of `values`."""
    if bad.any():
        place = np.unravel_index(int(bad.argmax()), bad.shape)
        index = ", ".join(str(i) for i in place)
        raise PacketContentError(
            f"The {noun} at [{index}] is {values[place]}, expected {expected}.", remedy
        )
