"""Audio augmentation: speed, noise, reverberation, narrow band, codecs, gain."""

import numpy as np
import soxr
from numpy.random import Generator
from scipy.signal import fftconvolve

from esrt.arrays import Float32Array
from esrt.features import SAMPLE_RATE
from training.codec_sound import CODECS, recode
from training.recipe import Augmentation

_NARROW_RATES = (8000, 11_025)


def augment(audio: Float32Array, settings: Augmentation, random: Generator) -> Float32Array:
    """Augment an utterance at random: shape (samples,) in and out, clipped to [-1, 1].

    Only a change of speed changes the number of samples.
    """
    if settings.speed:
        audio = change_speed(audio, random.uniform(1 - settings.speed, 1 + settings.speed))
    if random.random() < settings.reverberation:
        audio = reverberate(audio, random.uniform(0.1, 0.5), random)
    if random.random() < settings.noise:
        audio = add_noise(audio, random.uniform(5, 30), random.uniform(0, 2), random)
    if random.random() < settings.narrow_band:
        audio = limit_bandwidth(audio, int(random.choice(_NARROW_RATES)))
    if settings.codec and random.random() < settings.codec:
        audio = recode(audio, *CODECS[int(random.integers(len(CODECS)))])
    gain = 10 ** (random.uniform(-settings.gain, settings.gain) / 20)
    return np.clip(gain * audio, -1, 1).astype(np.float32)


def change_speed(audio: Float32Array, factor: float) -> Float32Array:
    """Play faster and higher by a factor, or slower and lower."""
    changed: Float32Array = soxr.resample(audio, SAMPLE_RATE * factor, SAMPLE_RATE)
    return changed


def add_noise(audio: Float32Array, snr: float, slope: float, random: Generator) -> Float32Array:
    """Add stationary noise.

    Args:
        audio: shape (samples,).
        snr: signal-to-noise ratio in dB, of the mean powers over the whole utterance.
        slope: the noise's power falls as 1 / frequency^slope: 0 is white, 1 pink, 2 brown.
        random: generator of the noise.
    """
    spectrum = np.fft.rfft(random.standard_normal(len(audio)))
    frequency = np.maximum(np.arange(len(spectrum)), 1)
    noise = np.fft.irfft(spectrum / frequency ** (slope / 2), len(audio))
    ratio = np.mean(audio**2) / np.maximum(np.mean(noise**2), 1e-20)
    return np.asarray(audio + np.sqrt(ratio / 10 ** (snr / 10)) * noise, np.float32)


def reverberate(audio: Float32Array, seconds: float, random: Generator) -> Float32Array:
    """Add reverberation with the given RT60, the time in which sound decays by 60 dB.

    The impulse response is the direct sound plus a tail of exponentially decaying noise (Polack's
    model). The tail has the energy of the direct sound.

    Args:
        audio: shape (samples,).
        seconds: RT60.
        random: generator of the tail.
    """
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = random.standard_normal(len(times)) * 10 ** (-3 * times / seconds)
    response = tail / np.sqrt(np.sum(tail**2))
    response[0] = 1.0
    return np.asarray(fftconvolve(audio, response)[: len(audio)], np.float32)


def limit_bandwidth(audio: Float32Array, rate: int) -> Float32Array:
    """Limit the bandwidth to that of a lower sampling rate in Hz."""
    low: Float32Array = soxr.resample(audio, SAMPLE_RATE, rate)
    restored: Float32Array = soxr.resample(low, rate, SAMPLE_RATE)
    return np.pad(restored[: len(audio)], (0, max(0, len(audio) - len(restored))))
