"""Scalar codecs, which quantize each value independently.

The codecs are fp16, and int8 and int4 with a scale per token.
"""

import numpy as np
import numpy.typing as npt

from esrt.arrays import Float32Array
from esrt.wire.codec import CHECK_MODEL, RE_ENCODE, Codec, reject_values

_HALF: np.dtype[np.float16] = np.dtype("<f2")
_FP16_MAX = 65504.0
_LARGEST = {Codec.INT8: 127, Codec.INT4: 7}


def size(codec: Codec, tokens: int, width: int) -> int:
    """Bytes of the payload for a shape."""
    values = tokens * width
    if codec is Codec.FP16:
        return 2 * values
    return 2 * tokens + (values if codec is Codec.INT8 else (values + 1) // 2)


def encode(codec: Codec, features: Float32Array) -> bytes:
    """Payload of finite float32 features (tokens, width).

    Raises:
        PacketContentError: a value is beyond the codec's range.
    """
    if codec is Codec.FP16:
        beyond = np.abs(features) > _FP16_MAX
        reject_values(
            beyond, features, "value", "at most 65504 in size for fp16", "Use the int8 codec."
        )
        return features.astype(_HALF).tobytes()
    scales, quantized = _quantized(features, _LARGEST[codec])
    return scales + (quantized.tobytes() if codec is Codec.INT8 else _packed(quantized))


def decode(codec: Codec, payload: memoryview, tokens: int, width: int) -> Float32Array:
    """Features (tokens, width) of a payload, which must have the length that `size` gives.

    Raises:
        PacketContentError: a value or a scale is not valid.
    """
    if codec is Codec.FP16:
        features = np.frombuffer(payload, _HALF).astype(np.float32).reshape(tokens, width)
        reject_values(~np.isfinite(features), features, "value", "a finite number", CHECK_MODEL)
        return features
    scales = _scales(payload, tokens)
    quantized = np.frombuffer(payload, np.int8, offset=2 * tokens)
    if codec is Codec.INT4:
        quantized = _unpacked(quantized, tokens * width)
    return quantized.reshape(tokens, width) * scales


def _packed(quantized: npt.NDArray[np.int8]) -> bytes:
    """Two values in a byte, the first in the low half."""
    nibbles = quantized.ravel().astype(np.uint8) & 0xF
    if nibbles.size % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[::2] | nibbles[1::2] << 4).tobytes()


def _unpacked(pairs: npt.NDArray[np.int8], count: int) -> npt.NDArray[np.int8]:
    nibbles = np.stack([pairs << 4 >> 4, pairs >> 4], axis=1).ravel()  # >> keeps the sign
    padding = nibbles[count:]
    reject_values(padding != 0, padding, "half byte after the last value", "0", RE_ENCODE)
    return nibbles[:count]


def _quantized(features: Float32Array, largest: int) -> tuple[bytes, npt.NDArray[np.int8]]:
    """Scales as bytes, and the values in steps of their scale, at most `largest` in magnitude."""
    exact: Float32Array = np.abs(features).max(axis=1) / np.float32(largest)
    reject_values(exact > _FP16_MAX, exact, "scale", "at most fp16's 65504", CHECK_MODEL)
    scales = exact.astype(_HALF)
    # The decoder gets the rounded scale, so quantizing with it keeps the error within half a step.
    # A scale that was rounded down puts the largest values slightly above the range: clip them.
    steps = scales.astype(np.float32)
    steps[steps == 0] = 1  # every value of such a token rounds to 0
    rounded: Float32Array = np.rint(features / steps[:, np.newaxis])
    return scales.tobytes(), rounded.clip(-largest, largest).astype(np.int8)


def _scales(payload: memoryview, tokens: int) -> Float32Array:
    """Scales at the beginning of a payload: (tokens, 1)."""
    scales = np.frombuffer(payload, _HALF, count=tokens).astype(np.float32)
    reject_values(~np.isfinite(scales), scales, "scale", "a finite number", CHECK_MODEL)
    reject_values(np.signbit(scales), scales, "scale", "no sign bit", RE_ENCODE)
    return scales[:, np.newaxis]
