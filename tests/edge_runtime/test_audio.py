"""Audio files of many formats, and files without usable speech."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from edge_runtime.audio import read_audio
from esrt.arrays import Float32Array
from esrt.errors import AudioError
from tests.edge_runtime.helpers import MAX_SECONDS, RATE, speech, write_wav

LOSSLESS = [
    ("a.wav", "PCM_U8", 1 / 128),
    ("a.wav", "PCM_16", 1e-4),
    ("a.wav", "PCM_24", 1e-6),
    ("a.wav", "PCM_32", 1e-6),
    ("a.wav", "FLOAT", 1e-6),
    ("a.wav", "DOUBLE", 1e-6),
    ("a.wav", "ULAW", 0.03),
    ("a.flac", "PCM_16", 1e-4),
    ("a.aiff", "PCM_16", 1e-4),
]


def correlation(a: Float32Array, b: Float32Array) -> float:
    return float(np.corrcoef(a, b)[0, 1])


@pytest.mark.parametrize(("name", "subtype", "error"), LOSSLESS)
def test_formats(tmp_path: Path, name: str, subtype: str, error: float) -> None:
    audio = read_audio(write_wav(tmp_path / name, speech(1.0), subtype=subtype))
    assert audio.samples.dtype == np.float32
    assert audio.samples.shape == (RATE,)
    np.testing.assert_allclose(audio.samples, speech(1.0), atol=error)


@pytest.mark.parametrize(
    ("name", "subtype"), [("a.ogg", "VORBIS"), ("a.ogg", "OPUS"), ("a.mp3", "MPEG_LAYER_III")]
)
def test_lossy_formats(tmp_path: Path, name: str, subtype: str) -> None:
    if not soundfile.check_format(Path(name).suffix[1:], subtype):
        pytest.skip(f"this libsndfile does not write {subtype}")
    audio = read_audio(write_wav(tmp_path / name, speech(1.0), subtype=subtype))
    assert abs(audio.seconds - 1) < 0.1
    delays = [correlation(audio.samples[d : d + 12_000], speech(1.0)[:12_000]) for d in range(1500)]
    assert max(delays) > 0.95


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_rates_and_channels(tmp_path: Path, rate: int, channels: int) -> None:
    path = write_wav(tmp_path / "a.wav", speech(1.0, rate, channels), rate)
    audio = read_audio(path)
    assert audio.rate == read_audio(path).rate == rate
    assert abs(len(audio.samples) - RATE) <= 1
    inner = slice(200, 15_800)  # a resampler rings at the edges of a sound cut off
    np.testing.assert_allclose(audio.samples[inner], speech(1.0)[inner], atol=2e-3)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = speech(0.5), 0.1 * speech(0.5)[::-1]
    audio = read_audio(write_wav(tmp_path / "a.wav", np.stack([left, right], axis=1)))
    np.testing.assert_allclose(audio.samples, (left + right) / 2, atol=1e-4)


def test_length_and_size(tmp_path: Path) -> None:
    audio = read_audio(write_wav(tmp_path / "a.wav", speech(1.5, 48_000, 2), 48_000))
    assert audio.seconds == 1.5


def test_a_wrong_ending_does_not_matter(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.flac", speech(0.5)).rename(tmp_path / "a.wav")
    assert read_audio(path).seconds == 0.5


def test_bytes_before_the_samples_do_not_matter(tmp_path: Path) -> None:
    whole = write_wav(tmp_path / "a.wav", speech(0.5)).read_bytes()
    note = b"LIST" + (40).to_bytes(4, "little") + bytes(40)
    data = whole[:36] + note + whole[36:]
    path = tmp_path / "b.wav"
    path.write_bytes(data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:])
    np.testing.assert_array_equal(read_audio(path).samples, read_audio(tmp_path / "a.wav").samples)


def test_a_header_that_claims_more_than_there_is(tmp_path: Path) -> None:
    data = bytearray(write_wav(tmp_path / "a.wav", speech(0.5)).read_bytes())
    data[40:44] = (0xFFFFFFF0).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(data)
    assert read_audio(tmp_path / "a.wav").seconds == 0.5


@pytest.mark.parametrize("decibels", [-20, -50])
def test_quiet_speech_is_not_silent(tmp_path: Path, decibels: float) -> None:
    samples = speech(0.5)
    samples *= 10 ** (decibels / 20) / np.abs(samples).max()
    assert len(read_audio(write_wav(tmp_path / "a.wav", samples, subtype="FLOAT")).samples)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    assert message.endswith(".")
    assert all(word in message for word in words), message


def test_refuses_files_without_audio(tmp_path: Path) -> None:
    refused(tmp_path / "gone.wav", "No such file")
    refused(tmp_path, "directory")
    for name, content in {
        "text.wav": b"not audio " * 100,
        "zeros.wav": bytes(5000),
        "random.mp3": np.random.default_rng(1).bytes(5000),
        "headerless.raw": speech(0.5).tobytes(),
        "cut.wav": b"RIFF\x00\x00",
    }.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "not audio")


def test_refuses_empty_files(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    refused(tmp_path / "empty.wav", "is empty")
    refused(write_wav(tmp_path / "none.wav", np.zeros(0, np.float32)), "no samples")


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(RATE, np.float32),
        np.full(RATE, 0.25, np.float32),
        speech(1.0) * 1e-3,
    ],
    ids=["zeros", "constant", "-68 dBFS"],
)
def test_refuses_silence(tmp_path: Path, samples: Float32Array) -> None:
    refused(write_wav(tmp_path / "a.wav", samples, subtype="FLOAT"), "silent", "-60 dBFS")


@pytest.mark.parametrize("rate", [RATE, 44_100])
@pytest.mark.parametrize("offset", [0.0, 0.25])
def test_of_channels_that_cancel_out_one_is_taken(tmp_path: Path, rate: int, offset: float) -> None:
    samples = speech(1.0, rate)
    stereo = np.stack([samples, offset - 0.9 * samples], axis=1)
    audio = read_audio(write_wav(tmp_path / "a.wav", stereo, rate))
    (warning,) = audio.warnings
    assert "2 channels cancel out" in warning
    assert "channel 1," in warning
    np.testing.assert_allclose(audio.samples[200:15_800], speech(1.0)[200:15_800], atol=2e-3)


@pytest.mark.parametrize(
    "channels",
    [
        [0 * speech(0.5), 0 * speech(0.5)],
        [0 * speech(0.5) + 0.25, 0 * speech(0.5) - 0.25],
        [1e-3 * speech(0.5), -1e-3 * speech(0.5)],
        [4e-3 * speech(0.5), *[0 * speech(0.5)] * 7],
    ],
    ids=["zeros", "opposite constants", "opposite and silent", "one quiet channel of eight"],
)
def test_channels_that_do_not_cancel_out_are_silent(
    tmp_path: Path, channels: list[Float32Array]
) -> None:
    path = write_wav(tmp_path / "a.wav", np.stack(channels, axis=1), subtype="FLOAT")
    refused(path, "silent:")


def test_ultrasound_is_silent(tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 30_000 * np.arange(96_000) / 96_000) * np.hanning(96_000)
    path = write_wav(tmp_path / "a.wav", np.stack([0.5 * tone] * 2, axis=1), 96_000, "FLOAT")
    refused(path, "silent:")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_refuses_samples_that_are_not_finite(tmp_path: Path, value: float, rate: int) -> None:
    samples = speech(1.0, rate)
    samples[[4321, 5000]] = value
    path = write_wav(tmp_path / "a.wav", samples, rate, "FLOAT")
    refused(path, "2 samples", "not finite", "number 4321")


def test_refuses_floats_of_another_scale(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", speech(1.0) * 32768, subtype="FLOAT")
    refused(path, "full scale")


def test_the_length_is_bounded(tmp_path: Path) -> None:
    samples = speech(MAX_SECONDS + 1)
    path = write_wav(tmp_path / "a.wav", samples[: round(MAX_SECONDS * RATE)])
    assert read_audio(path, MAX_SECONDS).seconds == MAX_SECONDS
    write_wav(path, samples[: round(MAX_SECONDS * RATE) + 161])
    with pytest.raises(AudioError, match="lasts longer than 4 s"):
        read_audio(path, MAX_SECONDS)
    assert read_audio(path).seconds > MAX_SECONDS
