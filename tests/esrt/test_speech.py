"""The search for speech: invariant to silence, level and offset."""

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from esrt.arrays import Float32Array
from esrt.bundled import SAMPLES
from esrt.features import HOP, SAMPLE_RATE
from esrt.speech import DEFAULT_SETTINGS, find_speech, trim_and_level

SETTINGS = DEFAULT_SETTINGS
LEAD, TAIL = round(SETTINGS.lead_seconds * SAMPLE_RATE), round(SETTINGS.tail_seconds * SAMPLE_RATE)
CLIPS = sorted(SAMPLES.glob("*.flac"))


def clip(number: int) -> Float32Array:
    audio, _ = soundfile.read(CLIPS[number], dtype="float32")
    return np.asarray(audio)


def noise(count: int, dbfs: float) -> Float32Array:
    random = np.random.default_rng(count)
    return (10 ** (dbfs / 20) * random.standard_normal(count)).astype(np.float32)


@given(
    number=st.integers(0, len(CLIPS) - 1),
    before=st.floats(0, 3),
    after=st.floats(0, 3),
    gain=st.floats(-40, 0),
    offset=st.floats(-0.3, 0.3),
)
def test_silence_level_and_offset_change_little(
    number: int, before: float, after: float, gain: float, offset: float
) -> None:
    audio = clip(number)
    lead, tail = round(before * SAMPLE_RATE), round(after * SAMPLE_RATE)
    recording = np.pad(audio, (lead, tail)) * 10 ** (gain / 20) + offset
    recording = recording.astype(np.float32) + noise(len(recording), gain - 70)
    bounds = find_speech(recording, SETTINGS)
    assert bounds is not None
    # No more than the margins of silence stay, and no more than a frame of speech is lost.
    assert lead - LEAD - HOP <= bounds.start <= lead + 0.1 * SAMPLE_RATE
    assert bounds.stop <= lead + len(audio) + TAIL + HOP
    speech = bounds.apply(recording)
    power = (speech[: len(speech) // HOP * HOP].reshape(-1, HOP).astype(float) ** 2).mean(axis=1)
    loud = power[power > power.max() / 1e4]
    assert 10 * np.log10(loud.mean()) == pytest.approx(SETTINGS.level_dbfs, abs=1)


@pytest.mark.parametrize("dbfs", [-60, -50, -40])
def test_noise_around_the_speech_is_trimmed(dbfs: float) -> None:
    audio = np.pad(clip(0), SAMPLE_RATE) + noise(2 * SAMPLE_RATE + len(clip(0)), dbfs)
    bounds = find_speech(audio, SETTINGS)
    assert bounds is not None
    assert SAMPLE_RATE - LEAD <= bounds.start <= 1.1 * SAMPLE_RATE
    assert bounds.stop <= SAMPLE_RATE + len(clip(0)) + TAIL


def test_clicks_are_not_speech() -> None:
    audio = np.zeros(SAMPLE_RATE, np.float32)
    audio[::4_000] = 0.9
    assert find_speech(audio, SETTINGS) is None


@pytest.mark.parametrize("samples", [0, 1, HOP, 3 * HOP - 1, 8_000])
def test_constant_audio_has_no_speech(samples: int) -> None:
    audio = np.full(samples, 0.5, np.float32)
    assert find_speech(audio, SETTINGS) is None
    np.testing.assert_array_equal(trim_and_level(audio, SETTINGS), audio)


def test_pauses_inside_the_speech_stay() -> None:
    audio = np.concatenate([clip(0), np.zeros(SAMPLE_RATE, np.float32), clip(1)])
    bounds = find_speech(audio, SETTINGS)
    assert bounds is not None
    assert bounds.stop - bounds.start > len(audio) - 0.5 * SAMPLE_RATE
