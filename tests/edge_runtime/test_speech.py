"""Speech in a recording: trimmed, leveled, with a voice or refused."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from edge_runtime.audio import Audio
from edge_runtime.speech import prepare_speech, read_speech
from esrt.arrays import Float32Array
from esrt.bundled import SAMPLES
from esrt.errors import AudioError
from esrt.features import SAMPLE_RATE
from tests.edge_runtime.helpers import MAX_SECONDS, front_end, voice, write_wav

SECONDS = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
RANDOM = np.random.default_rng(5)
TONES = np.array([[220.0], [277.0], [330.0], [440.0]])


def refused(samples: Float32Array, *words: str) -> None:
    with pytest.raises(AudioError) as caught:
        prepare_speech(Audio(samples.astype(np.float32)), front_end(max_seconds=12.0))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("file", sorted(SAMPLES.glob("*.flac")), ids=lambda file: file.stem)
def test_every_clip_has_a_voice_in_noise(file: Path) -> None:
    clip, _ = soundfile.read(file, dtype="float32")
    recording = np.pad(clip, 8_000) / 10 + 0.05
    recording += np.sqrt(np.mean(recording.var())) * RANDOM.standard_normal(len(recording)) / 3
    audio = Audio(recording.astype(np.float32))
    speech = prepare_speech(audio, front_end(max_seconds=12.0))
    assert speech.recording is audio
    assert speech.seconds <= audio.seconds


def test_the_speech_of_a_file_is_trimmed(tmp_path: Path) -> None:
    recording = np.pad(voice(1.0), (16_000, 24_000))
    speech = read_speech(write_wav(tmp_path / "a.wav", recording), front_end())
    assert speech.recording.seconds == 3.5
    assert speech.start == pytest.approx(0.96, abs=0.02)
    assert speech.seconds == pytest.approx(1.34, abs=0.04)
    assert speech.pcm_bytes == 2 * len(speech.samples)


@pytest.mark.parametrize(
    "samples",
    [
        0.1 * RANDOM.standard_normal(len(SECONDS)),
        0.3 * np.sin(2 * np.pi * 50 * SECONDS),
        0.3 * np.sin(2 * np.pi * 440 * SECONDS),
        0.1 * np.sin(2 * np.pi * TONES * SECONDS).sum(axis=0) * np.exp(-4 * (SECONDS % 0.5)),
        RANDOM.standard_normal(len(SECONDS)) * (0.001 + 0.3 * np.exp(-20 * abs(SECONDS - 1))),
        0.9 * (np.arange(len(SECONDS)) % 4_000 < 3),
    ],
    ids=["white noise", "hum", "tone", "music", "door", "clicks"],
)
def test_refuses_sounds_without_a_voice(samples: Float32Array) -> None:
    refused(samples, "No voice", "microphone")


def test_the_model_bounds_the_length() -> None:
    silence = np.zeros(5 * SAMPLE_RATE, np.float32)
    limits = front_end()
    recording = Audio(np.concatenate([silence, voice(MAX_SECONDS - 0.05)]))
    assert 3.9 < prepare_speech(recording, limits).seconds <= MAX_SECONDS  # silence is not counted
    with pytest.raises(AudioError, match=r"has 4\.1 s of speech; this model takes 4 s"):
        prepare_speech(Audio(voice(MAX_SECONDS + 0.1)), limits)
    with pytest.raises(AudioError, match="lasts 79 ms; this model needs at least 80 ms"):
        prepare_speech(Audio(voice(0.0794)), limits)
