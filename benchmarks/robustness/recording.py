"""Files as recorders write them: FLAC, and codecs of telephones and messengers at low rates."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from esrt.arrays import Float32Array
from esrt.features import SAMPLE_RATE

# Writes samples, (samples,) at 16 kHz within [-1, 1], below a name without an ending; returns the
# file's name.
Recorder = Callable[[Float32Array, Path], Path]


def flac(rate: int) -> Recorder:
    """FLAC with 16 bits, which adds nothing but the rounding of its samples."""

    def record(audio: Float32Array, name: Path) -> Path:
        file = name.with_suffix(".flac")
        soundfile.write(file, soxr.resample(audio, SAMPLE_RATE, rate), rate, subtype="PCM_16")
        return file

    return record


def lossy(ending: str, encoder: str, rate: int, bits_per_s: int) -> Recorder:
    """A file of one of FFmpeg's encoders."""

    def record(audio: Float32Array, name: Path) -> Path:
        file = name.with_suffix(ending)
        scaled = 32768 * soxr.resample(audio, SAMPLE_RATE, rate)
        samples = np.clip(np.rint(scaled), -32768, 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = rate
        with av.open(str(file), "w") as container:
            stream = container.add_stream(encoder, rate=rate, layout="mono")
            assert isinstance(stream, av.AudioStream)  # by its encoder
            stream.bit_rate = bits_per_s
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return file

    return record


def opus(kbps: int) -> Recorder:
    """An Ogg file with Opus."""
    return lossy(".opus", "libopus", SAMPLE_RATE, 1000 * kbps)


FLAC = flac(SAMPLE_RATE)
TELEPHONE = flac(8_000)
MP3 = lossy(".mp3", "libmp3lame", SAMPLE_RATE, 32_000)
AMR = lossy(".amr", "libopencore_amrnb", 8_000, 12_200)
