"""Audio augmentation: strength, length, and repeatability."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esrt.arrays import Float32Array
from training.augment import add_noise, augment, change_speed, limit_bandwidth, reverberate
from training.codec_sound import CODECS, recode
from training.recipe import Augmentation

RATE = 16_000
EVERYTHING = Augmentation(noise=1, reverberation=1, narrow_band=1, gain=6)
quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def white(seconds: float = 1.0) -> Float32Array:
    return (0.1 * random(1).standard_normal(round(seconds * RATE))).astype(np.float32)


def power(audio: Float32Array, low: float, high: float) -> float:
    """Sum the power of a band, in Hz."""
    spectrum = np.abs(np.fft.rfft(audio.astype(np.float64))) ** 2
    frequencies = np.fft.rfftfreq(len(audio), 1 / RATE)
    return float(spectrum[(frequencies >= low) & (frequencies < high)].sum())


@quick
@given(snr=st.floats(5, 30), slope=st.floats(0, 2), seed=seeds)
def test_noise_has_the_given_ratio(snr: float, slope: float, seed: int) -> None:
    audio = white()
    noise = add_noise(audio, snr, slope, random(seed)) - audio
    assert 10 * np.log10(np.mean(audio**2) / np.mean(noise**2)) == pytest.approx(snr, abs=0.05)


@pytest.mark.parametrize("slope", [0, 1, 2])
def test_noise_falls_with_its_slope(slope: float) -> None:
    """Power falls as 1 / frequency^slope between bands of equal width."""
    audio = white(8)
    noise = add_noise(audio, 0, slope, random()) - audio
    bands = power(noise, 450, 550), power(noise, 4450, 4550)
    assert 10 * np.log10(bands[0] / bands[1]) == pytest.approx(10 * slope * np.log10(9), abs=1.5)


def test_silence_stays_silent_and_finite() -> None:
    silence = np.zeros(RATE, np.float32)
    assert not augment(silence, EVERYTHING, random()).any()


@pytest.mark.parametrize("seconds", [0.15, 0.4])
def test_reverberation_decays_in_the_given_time(seconds: float) -> None:
    """Schroeder integration: the tail's energy, summed from its end, falls 60 dB in that time."""
    click = np.zeros(RATE, np.float32)
    click[0] = 1
    response = reverberate(click, seconds, random()).astype(np.float64)
    assert response[0] == pytest.approx(1, abs=1e-5)
    tail = response[1:]
    assert np.sum(tail**2) == pytest.approx(1, abs=0.05)  # as loud as the direct sound
    left = 10 * np.log10(np.cumsum(tail[::-1] ** 2)[::-1][: round(0.5 * seconds * RATE)])
    slope = np.polyfit(np.arange(len(left)) / RATE, left, 1)[0]
    assert slope == pytest.approx(-60 / seconds, rel=0.1)


def test_the_direct_sound_comes_first() -> None:
    later = np.zeros(RATE, np.float32)
    later[4000:] = white()[4000:]
    assert np.abs(reverberate(later, 0.3, random())[:4000]).max() < 1e-5


@pytest.mark.parametrize("rate", [8000, 11_025])
def test_a_narrow_band_has_nothing_above_half_its_rate(rate: int) -> None:
    audio = white()
    found = limit_bandwidth(audio, rate)
    before, after = (power(sound, 1.02 * rate / 2, RATE / 2) for sound in (audio, found))
    assert after < 1e-4 * before
    kept = [power(sound, 100, 0.85 * rate / 2) for sound in (audio, found)]
    assert kept[1] == pytest.approx(kept[0], rel=0.01)


@quick
@given(gain=st.floats(0, 20), seed=seeds)
def test_gain_is_within_its_bounds(gain: float, seed: int) -> None:
    audio = 0.01 * white()
    found = augment(audio, Augmentation(gain=gain), random(seed))
    change = 20 * np.log10(np.abs(found).max() / np.abs(audio).max())
    assert -gain - 0.01 <= change <= gain + 0.01


def test_gain_goes_both_ways() -> None:
    audio = 0.01 * white()
    peaks = [np.abs(augment(audio, Augmentation(gain=12), random(seed))).max() for seed in range(9)]
    assert min(peaks) < 0.5 * np.abs(audio).max() < 2 * np.abs(audio).max() < max(peaks)


def test_without_settings_nothing_changes() -> None:
    audio = white()
    np.testing.assert_array_equal(augment(audio, Augmentation(), random()), audio)


def test_changes_have_the_given_probability() -> None:
    audio = white(0.1)
    settings_ = Augmentation(noise=0.3)
    source = random()
    changed = [not np.array_equal(augment(audio, settings_, source), audio) for _ in range(500)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.07)


@quick
@given(samples=st.integers(200, 20_000), seed=seeds)
def test_length_type_and_range_stay(samples: int, seed: int) -> None:
    audio = np.clip(5 * white(2)[:samples], -1, 1)
    found = augment(audio, EVERYTHING, random(seed))
    assert (found.shape, found.dtype) == (audio.shape, np.float32)
    assert np.abs(found).max() <= 1
    np.testing.assert_array_equal(augment(audio, EVERYTHING, random(seed)), found)


def test_another_seed_sounds_different() -> None:
    one, other = (augment(white(), EVERYTHING, random(seed)) for seed in (0, 1))
    assert not np.allclose(one, other, atol=1e-3)


def test_speed_changes_length_and_pitch() -> None:
    times = np.arange(RATE) / RATE
    tone = (0.5 * np.sin(2 * np.pi * 400 * times)).astype(np.float32)
    faster = change_speed(tone, 1.25)
    assert len(faster) == pytest.approx(RATE / 1.25, abs=2)
    spectrum = np.abs(np.fft.rfft(faster * np.hanning(len(faster))))
    assert spectrum.argmax() * RATE / len(faster) == pytest.approx(500, abs=3)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec[0]}-{codec[3]}")
def test_codecs_keep_length_and_spectrum_within_their_band(
    codec: tuple[str, str, int, int],
) -> None:
    times = np.arange(RATE) / RATE
    audio = sum(np.sin(2 * np.pi * pitch * times) for pitch in (300, 900, 1500)) / 6
    audio = np.asarray(audio * (1 + np.sin(2 * np.pi * 3 * times)) / 2, np.float32)
    decoded = recode(audio, *codec)
    assert decoded.shape == audio.shape
    assert decoded.dtype == np.float32
    assert not np.array_equal(decoded, audio)
    for pitch in (300, 900, 1500):
        band = pitch - 30, pitch + 30
        ratio = power(decoded, *band) / power(audio, *band)
        assert abs(10 * np.log10(ratio)) < 3, pitch


def test_new_kinds_do_not_change_the_draws_of_others() -> None:
    audio = white()
    plain = Augmentation(noise=0.5, reverberation=0.5, narrow_band=0.5, gain=6)
    named = plain.model_copy(update={"speed": 0.0, "codec": 0.0})
    assert np.array_equal(augment(audio, plain, random(3)), augment(audio, named, random(3)))
    faster = augment(audio, Augmentation(speed=0.1), random(3))
    assert len(faster) != len(audio)
    recoded = augment(audio, Augmentation(codec=1), random(3))
    assert recoded.shape == audio.shape
    assert not np.allclose(recoded, audio, atol=1e-3)
