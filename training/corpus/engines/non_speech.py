"""Sound without words: noise, chords, hum, silence, clicks, and fragments of words."""

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
from numpy.random import Generator

from esrt.arrays import Float32Array
from esrt.features import SAMPLE_RATE
from training.corpus.engines import split_of_number
from training.corpus.engines.espeak import Espeak

SOUNDS_OF_A_KIND = 1000


class NonSpeech:
    """Generator of sounds; a voice is a kind and a number, such as ``noise 17``.

    Raises:
        SpeechError: espeak-ng, whose words are cut, is not installed.
    """

    def __init__(self) -> None:
        self._espeak = Espeak()
        self._kinds: dict[str, Callable[[Generator], Float32Array]] = {
            "noise": _noise,
            "chords": _chords,
            "hum": _hum,
            "silence": _silence,
            "clicks": _clicks,
        }

    def voices(self, language: str, split: str) -> Sequence[str]:
        """Kinds and numbers, in rotation."""
        kinds = [*self._kinds, "fragment"]
        return [
            f"{kind} {number}"
            for number in range(SOUNDS_OF_A_KIND)
            if split_of_number(number, SOUNDS_OF_A_KIND) == split
            for kind in kinds
        ]

    def speak(self, text: str, language: str, voice: str) -> Float32Array:
        """Make a sound; a fragment is cut out of ``text``."""
        kind = voice.split()[0]
        random = np.random.default_rng(int.from_bytes(voice.encode(), "big"))
        if kind == "fragment":
            return self._fragment(text, language, voice, random)
        return self._kinds[kind](random)

    def _fragment(self, text: str, language: str, voice: str, random: Generator) -> Float32Array:
        """Cut 50 to 150 ms of speech, less than a syllable."""
        speakers = self._espeak.voices(language, "train")
        audio = self._espeak.speak(text, language, Random(voice).choice(speakers))
        length = int(random.uniform(0.05, 0.15) * SAMPLE_RATE)
        start = int(random.integers(0, max(1, len(audio) - length)))
        silence = np.zeros(int(random.uniform(0.1, 0.5) * SAMPLE_RATE), np.float32)
        faded = audio[start : start + length] * np.hanning(len(audio[start : start + length]))
        return np.concatenate([silence, faded.astype(np.float32), silence])


def _samples(random: Generator) -> int:
    return int(random.uniform(0.5, 4) * SAMPLE_RATE)


def _noise(random: Generator) -> Float32Array:
    """Noise of a random slope, whose loudness may rise and fall."""
    samples = _samples(random)
    spectrum = np.fft.rfft(random.standard_normal(samples))
    frequency = np.maximum(np.arange(len(spectrum)), 1)
    noise = np.fft.irfft(spectrum / frequency ** random.uniform(0, 1), samples)
    if random.random() < 0.5:
        points = random.random(int(random.integers(3, 12)))
        noise *= np.interp(np.linspace(0, len(points) - 1, samples), np.arange(len(points)), points)
    return _at_level(noise, random)


def _chords(random: Generator) -> Float32Array:
    """Chords of decaying harmonic tones, like a plucked instrument."""
    samples = _samples(random)
    audio = np.zeros(samples)
    for start in range(0, samples, int(random.uniform(0.2, 0.8) * SAMPLE_RATE)):
        times = np.arange(samples - start) / SAMPLE_RATE
        for _ in range(int(random.integers(1, 4))):
            pitch = 110 * 2 ** (int(random.integers(0, 36)) / 12)
            for harmonic in range(1, 5):
                wave = np.sin(2 * np.pi * pitch * harmonic * times)
                audio[start:] += wave * np.exp(-4 * harmonic * times) / harmonic
    return _at_level(audio, random)


def _hum(random: Generator) -> Float32Array:
    """Hum of mains or a motor, or a sweep."""
    samples = _samples(random)
    times = np.arange(samples) / SAMPLE_RATE
    first = random.uniform(50, 400)
    last = first if random.random() < 0.5 else random.uniform(50, 4000)
    phase = 2 * np.pi * np.cumsum(np.linspace(first, last, samples)) / SAMPLE_RATE
    audio = sum(np.sin(n * phase) * random.random() / n for n in range(1, 6))
    audio = audio + 0.02 * random.standard_normal(len(times))
    return _at_level(np.asarray(audio), random)


def _silence(random: Generator) -> Float32Array:
    """Near-silence: the noise of a microphone."""
    return np.asarray(1e-4 * random.standard_normal(_samples(random)), np.float32)


def _clicks(random: Generator) -> Float32Array:
    """Clicks and knocks over faint noise."""
    audio = 1e-3 * random.standard_normal(_samples(random))
    for _ in range(int(random.integers(1, 12))):
        start = int(random.integers(0, len(audio)))
        times = np.arange(min(1600, len(audio) - start)) / SAMPLE_RATE
        ring = np.sin(2 * np.pi * random.uniform(100, 3000) * times)
        audio[start : start + len(times)] += ring * np.exp(-times * random.uniform(50, 1000))
    return _at_level(audio, random)


def _at_level(audio: np.ndarray, random: Generator) -> Float32Array:
    """Scale to a random peak."""
    peak = max(float(np.abs(audio).max()), 1e-9)
    return np.asarray(audio * random.uniform(0.05, 0.9) / peak, np.float32)
