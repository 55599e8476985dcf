"""Sounds without speech, 3 s each, at random levels."""

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.signal import butter, sosfilt

from esrt.arrays import Float32Array
from esrt.features import SAMPLE_RATE

_Wave = NDArray[np.float64]

SECONDS = 3
_TIMES = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
# Levels of the peaks.
_DBFS = (-30, -3)


def sounds(variants: int) -> Iterator[tuple[str, Float32Array]]:
    """Names and samples, (samples,) at 16 kHz, of some variants of each kind of sound."""
    for number, make in enumerate((white_noise, hum, clicks, chords, door_slam)):
        for variant in range(variants):
            random = np.random.default_rng((number, variant))
            sound = make(random)
            gain = 10 ** (random.uniform(*_DBFS) / 20) / np.abs(sound).max()
            yield make.__name__.replace("_", " "), (gain * sound).astype(np.float32)


def white_noise(random: Generator) -> _Wave:
    """Stationary white noise."""
    return random.standard_normal(len(_TIMES))


def hum(random: Generator) -> _Wave:
    """Hum of the mains: ten harmonics of 50 or 60 Hz."""
    mains = random.choice([50, 60])
    sound = np.zeros(len(_TIMES))
    for k in range(1, 11):
        sound += random.uniform(0.2, 1) / k * np.sin(2 * np.pi * k * mains * _TIMES)
    return sound


def clicks(random: Generator) -> _Wave:
    """Single samples, about four each second, over faint noise."""
    sound = 1e-4 * random.standard_normal(len(_TIMES))
    sound[random.choice(len(_TIMES), 4 * SECONDS, replace=False)] = 1
    return sound


def chords(random: Generator) -> _Wave:
    """Music: six chords of three plucked notes with four harmonics each."""
    sound, length = np.zeros(len(_TIMES)), len(_TIMES) // 6
    times = _TIMES[:length]
    for number in range(6):
        root = 110 * 2 ** (random.integers(0, 13) / 12)
        for interval in (0, random.choice([3, 4]), 7):
            note = root * 2 ** (interval / 12)
            wave = sum(np.sin(2 * np.pi * k * note * times) / k for k in range(1, 5))
            sound[number * length : (number + 1) * length] += wave * np.exp(-4 * times)
    return sound


def door_slam(random: Generator) -> _Wave:
    """Silence with one low thud of a tenth of a second."""
    thud = random.standard_normal(len(_TIMES)) * np.exp(-_TIMES / 0.04)
    low = sosfilt(butter(2, 300, fs=SAMPLE_RATE, output="sos"), thud)
    return np.roll(np.asarray(low), random.integers(SAMPLE_RATE, 2 * SAMPLE_RATE))
