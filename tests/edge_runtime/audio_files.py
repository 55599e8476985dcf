"""Recordings in many formats, made by libsndfile and FFmpeg when a test runs."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import av
import numpy as np
import soundfile

from esrt.arrays import Float32Array
from tests.edge_runtime.helpers import RATE


def by_libsndfile(
    samples: Float32Array, container: str, subtype: str | None = None, rate: int = RATE
) -> bytes:
    """Encode samples of shape (samples,) or (samples, channels)."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def by_ffmpeg(
    samples: Float32Array,
    container: str,
    codec: str,
    rate: int = RATE,
    layout: str = "mono",
    bit_rate: int | None = 64_000,
    **options: str,
) -> bytes:
    """Encode samples of shape (samples,) or (samples, channels); options are the container's."""
    file = io.BytesIO()
    # Interleaved: PyAV does not count eight planes right.
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    with av.open(file, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        for part in (frame, None):
            for packet in stream.encode(part):
                output.mux(packet)
    return file.getvalue()


def video(samples: Float32Array, container: str = "mp4", seconds: float = 4.0) -> bytes:
    """A film of grey pictures with the samples as its sound, which may end before the pictures."""
    file = io.BytesIO()
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts = RATE, 0
    picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 128, np.uint8), format="rgb24")
    with av.open(file, "w", format=container) as output:
        pictures = output.add_stream("mpeg4", rate=10, width=64, height=64, pix_fmt="yuv420p")
        sound = output.add_stream("aac", rate=RATE, layout="mono")
        for number in range(round(seconds * 10)):
            picture.pts = number
            output.mux(pictures.encode(picture))
        for stream, last in ((pictures, None), (sound, frame), (sound, None)):
            output.mux(stream.encode(last))
    return file.getvalue()


@dataclass(frozen=True)
class Format:
    """A format of recordings.

    Attributes:
        encode: samples at `rate` to a file.
        rate: sample rate in Hz.
        lossless: the samples come back within 16 bits.
        length_in_header: the length of a damaged file is known.
        pcm: samples of any value are valid, so that zeros and noise are no damage.
    """

    encode: Callable[[Float32Array], bytes]
    rate: int = RATE
    lossless: bool = False
    length_in_header: bool = True
    pcm: bool = False


def _pcm(container: str, subtype: str = "PCM_16") -> Format:
    return Format(lambda x: by_libsndfile(x, container, subtype), lossless=True, pcm=True)


FORMATS = {
    "wav": _pcm("WAV"),
    "wav-float": _pcm("WAV", "FLOAT"),
    "rf64": _pcm("RF64"),
    "w64": _pcm("W64"),
    "aiff": _pcm("AIFF"),
    "caf": _pcm("CAF"),
    "au": _pcm("AU"),
    "flac": Format(lambda x: by_libsndfile(x, "FLAC"), lossless=True),
    "mp3": Format(lambda x: by_libsndfile(x, "MP3")),
    "mp3-id3": Format(lambda x: by_ffmpeg(x, "mp3", "libmp3lame")),
    "mp3-no-header": Format(
        lambda x: by_ffmpeg(x, "mp3", "libmp3lame", write_xing="0", id3v2_version="0"),
        length_in_header=False,
    ),
    "vorbis": Format(lambda x: by_libsndfile(x, "OGG", "VORBIS"), length_in_header=False),
    "opus": Format(lambda x: by_libsndfile(x, "OGG", "OPUS"), length_in_header=False),
    "ogg-flac": Format(
        lambda x: by_ffmpeg(x, "ogg", "flac", bit_rate=None), lossless=True, length_in_header=False
    ),
    "m4a": Format(lambda x: by_ffmpeg(x, "ipod", "aac")),
    "mp4-fragments": Format(
        lambda x: by_ffmpeg(x, "mp4", "aac", movflags="frag_keyframe+empty_moov+default_base_moof")
    ),
    "alac": Format(lambda x: by_ffmpeg(x, "ipod", "alac", bit_rate=None), lossless=True, pcm=True),
    "aac": Format(lambda x: by_ffmpeg(x, "adts", "aac"), length_in_header=False),
    "webm": Format(lambda x: by_ffmpeg(x, "webm", "libopus")),
    "webm-live": Format(
        lambda x: by_ffmpeg(x, "webm", "libopus", live="1"), length_in_header=False
    ),
    "amr": Format(
        lambda x: by_ffmpeg(x, "amr", "libopencore_amrnb", 8_000, bit_rate=12_200),
        rate=8_000,
        length_in_header=False,
    ),
    "3gp": Format(
        lambda x: by_ffmpeg(x, "3gp", "libopencore_amrnb", 8_000, bit_rate=12_200), rate=8_000
    ),
    "wma": Format(lambda x: by_ffmpeg(x, "asf", "wmav2"), length_in_header=False),
}
