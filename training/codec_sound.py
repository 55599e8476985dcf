"""Sound of lossy codecs at low rates, by FFmpeg."""

import io

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream

from esrt.arrays import Float32Array
from esrt.features import SAMPLE_RATE

# Name of FFmpeg's encoder, container, sampling rate in Hz, bits a second.
CODECS = (
    ("libopus", "ogg", 16_000, 8_000),
    ("libopus", "ogg", 16_000, 12_000),
    ("libopus", "ogg", 16_000, 20_000),
    ("libopencore_amrnb", "amr", 8_000, 5_900),
    ("libopencore_amrnb", "amr", 8_000, 12_200),
    ("libmp3lame", "mp3", 16_000, 16_000),
    ("libmp3lame", "mp3", 16_000, 32_000),
    ("pcm_mulaw", "wav", 8_000, 64_000),
)


def recode(
    audio: Float32Array, codec: str, container: str, rate: int, bit_rate: int
) -> Float32Array:
    """Encode and decode: shape (samples,) in and out.

    Args:
        audio: mono, 16 kHz.
        codec: name of FFmpeg's encoder.
        container: format of the file.
        rate: sampling rate of the encoder, in Hz.
        bit_rate: bits a second.
    """
    file = io.BytesIO()
    samples = np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono", bit_rate=bit_rate)
        assert isinstance(stream, AudioStream)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        resampler = AudioResampler(format=stream.format, layout="mono", rate=rate)
        frames = [*resampler.resample(frame), *resampler.resample(None)]
        for one in frames:
            output.mux(stream.encode(one))
        output.mux(stream.encode(None))
    file.seek(0)
    back = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    with av.open(file, "r") as opened:
        parts = [part for one in opened.decode(audio=0) for part in back.resample(one)]
    parts += back.resample(None)
    decoded = np.concatenate([part.to_ndarray()[0] for part in parts])
    kept = decoded[: len(audio)]
    return np.pad(kept, (0, len(audio) - len(kept))).astype(np.float32)
