"""Audio codecs to compare with: FLAC and Opus, by libsndfile."""

import io

import numpy as np
import soundfile

from esrt.arrays import Float32Array
from esrt.features import SAMPLE_RATE

# libsndfile maps its compression levels 0 to 1 to Opus's bit rates from 256 to 6 kbit/s.
_OPUS_RANGE = 6_000, 256_000


def flac(audio: Float32Array) -> bytes:
    """Encode as a FLAC file with 16-bit samples."""
    file = io.BytesIO()
    soundfile.write(file, audio, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def opus(kbps: int, audio: Float32Array) -> bytes:
    """Encode as an Ogg file with Opus at a variable rate around ``kbps``, libopus's default."""
    low, high = _OPUS_RANGE
    file = io.BytesIO()
    level = (high - 1000 * kbps) / (high - low)
    soundfile.write(file, audio, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=level)
    return file.getvalue()


def through_opus(kbps: int, audio: Float32Array) -> Float32Array:
    """Encode as Opus and decode."""
    decoded, _ = soundfile.read(io.BytesIO(opus(kbps, audio)), dtype="float32")
    return np.asarray(decoded, np.float32)


def opus_packets(ogg: bytes) -> int:
    """Count the bytes of the audio packets, without Ogg's pages and the two headers (RFC 7845).

    This is the best case for Opus: a protocol whose framing costs nothing.
    """
    sizes, size, offset = [], 0, 0
    while offset < len(ogg):
        count = ogg[offset + 26]
        lacing = ogg[offset + 27 : offset + 27 + count]
        for length in lacing:
            size += length
            if length < 255:
                sizes.append(size)
                size = 0
        offset += 27 + count + sum(lacing)
    return sum(sizes[2:])
