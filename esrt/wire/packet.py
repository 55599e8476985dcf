"""The packet: header, limits and checksum around a codec's payload.

Decoding is total: any bytes give a `Packet` or a `PacketError`, and at most 16 MB are allocated.
"""

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from esrt.arrays import Float32Array
from esrt.errors import PacketContentError, PacketError, PacketTooLarge
from esrt.wire import scalar, transform_codec
from esrt.wire.codec import CHECK_MODEL, RE_ENCODE, Codec, Split, reject_values

MEDIA_TYPE = "application/vnd.esrt.features"
MAX_PACKET_BYTES = 1 << 20
# The shape has its own limits, because it determines how much a decoder allocates: a packet of a
# transform codec could otherwise claim gigabytes in a few bytes.
MAX_TOKENS = 2048
MAX_WIDTH = 8192
MAX_VALUES = 1 << 20

MAGIC = b"ESRT"
VERSION = 1
_HEADER = struct.Struct("<4sBBBB8sHHIII")
HEADER_BYTES = _HEADER.size
_CHECKED_BYTES = HEADER_BYTES - 4  # the checksum is the header's last field and covers the rest

_MAX_DURATION_MS = (1 << 32) - 1
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")

_RESEND = "Send the encoder's bytes unchanged, as one binary body."


@dataclass(frozen=True, eq=False)  # a generated == would fail on arrays
class Packet:
    """A decoded packet.

    Attributes:
        features: float32, (tokens, width), all finite.
        fingerprint: fingerprint of the encoder, 16 lower-case hex digits.
        split: split point of the features.
        codec: codec of the payload.
        duration_ms: length of the speech, in milliseconds; 0 if unknown.
    """

    features: Float32Array
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
    codec_tables: transform_codec.CodecTables | None = None,
) -> bytes:
    """Encode features as one packet.

    Args:
        features: (tokens, width), any floating type; converted to float32.
        fingerprint: fingerprint of the encoder, 16 lower-case hex digits.
        split: split point of the features.
        codec: codec of the payload.
        duration_ms: length of the speech, in milliseconds; 0 if unknown.
        codec_tables: the model's tables; only transform codecs need them.

    Raises:
        PacketContentError: the features are not two-dimensional, empty, not finite or beyond the
            codec's range; another argument is invalid; or the codec tables are missing or for
            other features.
        PacketTooLarge: the tokens, width, values or bytes exceed the limits of a packet.
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
    if codec.uses_tables:
        payload = transform_codec.encode(codec, values, split, codec_tables)
    else:
        payload = scalar.encode(codec, values)
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


def decode(data: bytes, codec_tables: transform_codec.CodecTables | None = None) -> Packet:
    """Decode one packet; allocates at most 16 MB, whatever the header claims.

    The checksum is verified before any field is interpreted, so a transmission error is reported
    as damage and not, for example, as an unknown codec.

    Args:
        data: the packet's bytes.
        codec_tables: tables of the serving model; only transform codecs need them.

    Raises:
        PacketError: the bytes are damaged, or not a packet of this version (status 400).
        PacketTooLarge: the packet or its shape exceeds the format's limits (status 413).
        FingerprintMismatch: the packet was written with other codec tables (status 409).
        PacketContentError: the packet has no values, or values that are not finite (status 422).
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
        raise PacketError(f"The reserved flags are {flags:#04x}, expected 0x00.", RE_ENCODE)
    if len(payload) != payload_bytes:
        raise PacketError(
            f"The payload has {len(payload)} bytes, expected {payload_bytes} as in the header.",
            _RESEND,
        )
    actual = zlib.crc32(payload, zlib.crc32(view[:_CHECKED_BYTES]))
    if actual != checksum:
        raise PacketError(
            f"The checksum of the bytes is {actual:#010x}, expected {checksum:#010x}.", _RESEND
        )
    split, codec = _by_wire_id(Split, split_id), _by_wire_id(Codec, codec_id)
    tables = transform_codec.require_tables(codec, codec_tables) if codec.uses_tables else None
    _check_shape(tokens, width)
    expected = payload_size(codec, tokens, width)
    if expected is not None and len(payload) != expected:
        raise PacketError(
            f"The payload has {len(payload)} bytes, expected {expected}"
            f" for {tokens} x {width} in {codec}.",
            RE_ENCODE,
        )
    if tables is not None:
        features = transform_codec.decode(codec, payload, tokens, width, split, tables)
    else:
        features = scalar.decode(codec, payload, tokens, width)
    return Packet(features, fingerprint.hex(), split, codec, duration_ms)


def claimed_tokens(data: bytes) -> int:
    """Number of tokens in a packet's header, unchecked; 0 if the header is incomplete."""
    return int(_HEADER.unpack_from(data)[6]) if len(data) >= HEADER_BYTES else 0


def payload_size(codec: Codec, tokens: int, width: int) -> int | None:
    """Bytes after the header for a shape; `None` if they depend on the values."""
    return None if codec.uses_tables else scalar.size(codec, tokens, width)


# --- Checks of both encode and decode ------------------------------------------------------------

_Name = TypeVar("_Name", Split, Codec)


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
    valid = ", ".join(f"{member.wire_id} ({member})" for member in kind)
    field = kind.__name__.lower()
    raise PacketError(
        f"The {field} id is {wire_id}, expected one of {valid}.",
        f"Use a {field} that both sides support.",
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
            CHECK_MODEL,
        )
    if tokens > MAX_TOKENS or width > MAX_WIDTH or tokens * width > MAX_VALUES:
        raise PacketTooLarge(
            f"The features are {tokens} x {width}, expected at most {MAX_TOKENS} tokens,"
            f" a width of {MAX_WIDTH} and {MAX_VALUES} values.",
            "Send shorter speech.",
        )


def _as_float32(features: npt.NDArray[np.floating[Any]]) -> Float32Array:
    array = np.asarray(features)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise PacketContentError(
            f"The features are {array.dtype} of shape {array.shape},"
            " expected a floating type of shape (tokens, width).",
            "Pass one utterance's features, without a batch axis.",
        )
    _check_shape(*array.shape)
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, rejected next
        values = array.astype(np.float32)
    reject_values(~np.isfinite(values), array, "value", "a finite float32", CHECK_MODEL)
    return values
