"""The numpy front end compared with openai-whisper's."""

import json

import numpy as np
import pytest
import soundfile
import whisper
import whisper.audio
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from esrt import features
from esrt.arrays import Float32Array
from esrt.bundled import SAMPLES
from esrt.features import HOP, MEL_BINS, SAMPLE_RATE

TOLERANCE = 1e-4
CLIPS = [row["file"] for row in json.loads((SAMPLES / "index.json").read_text("utf-8"))]


def tone(hertz: float, seconds: float, level: float = 0.5) -> Float32Array:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> Float32Array:
    samples = np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))
    return (level * samples).astype(np.float32)


def click() -> Float32Array:
    audio = np.zeros(2 * SAMPLE_RATE, np.float32)
    audio[12_345] = 0.9
    return audio


AUDIO = {
    "noise": noise(3.21),
    "loud noise, clipped": noise(1.5, level=2).clip(-1, 1),
    "low tone": tone(60, 2.0),
    "tone between two bins": tone(1234.5, 1.7),
    "high tone": tone(7900, 1.0),
    "chord": tone(440, 2.5, 0.2) + tone(660, 2.5, 0.2) + tone(3000, 2.5, 0.05),
    "silence with a click": click(),
    "quiet noise": noise(2.0, level=1e-5),
    "quiet tone": tone(300, 2.0, level=3e-5),
    "an offset": np.full(SAMPLE_RATE, 0.25, np.float32),
    "shorter than two frames": noise(0.0176),
    "not a whole number of frames": noise(1.0)[:-77],
}


def clip(name: str) -> Float32Array:
    audio, rate = soundfile.read(SAMPLES / name, dtype="float32")
    assert rate == SAMPLE_RATE
    return np.asarray(audio, np.float32)


each_mel_bins = pytest.mark.parametrize("bins", MEL_BINS)


def reference(audio: Float32Array, bins: int) -> Float32Array:
    return np.asarray(whisper.log_mel_spectrogram(audio, n_mels=bins).numpy(), np.float32)


def assert_equal(found: Float32Array, expected: Float32Array) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@each_mel_bins
@pytest.mark.parametrize("name", AUDIO)
def test_equals_whisper(name: str, bins: int) -> None:
    assert_equal(features.log_mel(AUDIO[name], bins), reference(AUDIO[name], bins))


@each_mel_bins
@pytest.mark.parametrize("name", CLIPS)
def test_equals_whisper_on_speech(name: str, bins: int) -> None:
    audio = clip(name)
    assert_equal(features.log_mel(audio, bins), reference(audio, bins))


@each_mel_bins
@pytest.mark.parametrize(
    "audio", [clip(CLIPS[0]), noise(31), click()], ids=["clip", "31 s", "click"]
)
def test_equals_whisper_in_the_padded_form(audio: Float32Array, bins: int) -> None:
    found = features.log_mel_features(audio, mel_bins=bins, frame_multiple=2, padded_seconds=30.0)
    assert found.shape == (bins, 3000)
    assert_equal(found, reference(whisper.pad_or_trim(audio), bins))


def test_silence_is_flat() -> None:
    found = features.log_mel_features(np.zeros(8000, np.float32), mel_bins=80, frame_multiple=8)
    np.testing.assert_allclose(found, -1.5, rtol=0, atol=1e-6)  # (log10(1e-10) + 4) / 4


@each_mel_bins
def test_mel_filters_equal_whispers(bins: int) -> None:
    found = features.mel_filters(bins)
    openai = whisper.audio.mel_filters("cpu", bins).numpy()
    transformers = WhisperFeatureExtractor(feature_size=bins).mel_filters.T
    for expected in (openai, transformers):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


def test_mel_scales_are_inverse() -> None:
    hertz = np.linspace(0, 8000, 801)
    np.testing.assert_allclose(features.hertz_scale(features.mel_scale(hertz)), hertz, atol=1e-8)


@pytest.mark.parametrize("length", [1, 15_999, 16_000, 16_001, 40_000])
def test_pad_or_trim_equals_whispers(length: int) -> None:
    audio = noise(3)[:length]
    expected = whisper.pad_or_trim(audio, SAMPLE_RATE)
    np.testing.assert_array_equal(features.pad_or_trim(audio, SAMPLE_RATE), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2 * SAMPLE_RATE), st.integers(1, 20).map(lambda n: 2 * n))
def test_frames_come_in_multiples_and_hold_all_audio(samples: int, multiple: int) -> None:
    audio = noise(2)[:samples]
    found = features.log_mel_features(audio, mel_bins=80, frame_multiple=multiple)
    frames = found.shape[1]
    assert frames % multiple == 0
    assert frames > 0
    assert frames * HOP >= samples
    assert frames == multiple or (frames - multiple) * HOP < samples
    assert np.isfinite(found).all()
    assert_equal(found, reference(whisper.pad_or_trim(audio, frames * HOP), 80))
