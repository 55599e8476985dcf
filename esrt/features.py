"""Whisper's log-mel front end in numpy: 16 kHz audio to mel bins every 10 ms.

The arithmetic equals ``log_mel_spectrogram`` of openai-whisper: Hann window of 400 samples, hop of
160 samples, Slaney mel scale, log10, a floor at the maximum minus 8, then ``(x + 4) / 4``. This
module is the reference for the front ends in other languages, which docs/front-end.md describes.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from esrt.arrays import Float32Array

SAMPLE_RATE = 16_000
N_FFT = 400
HOP = 160
# Mel bins of Whisper's models: 128 from large-v3 on, 80 before.
MEL_BINS = (80, 128)
FRAMES_PER_SECOND = SAMPLE_RATE // HOP


def mel_scale(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Frequencies in Hz, any shape, on Slaney's mel scale.

    The scale is linear up to 1 kHz (15 mel) and logarithmic above, with 27 mel for a factor of 6.4
    (Slaney, Auditory Toolbox, 1998; librosa's default).
    """
    linear = hertz * 3 / 200
    logarithmic = 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4)
    return np.where(hertz < 1000, linear, logarithmic)


def hertz_scale(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mels, any shape, in Hz: the inverse of :func:`mel_scale`."""
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))


@lru_cache
def mel_filters(bins: int) -> Float32Array:
    """Triangular mel filters of unit area, from 0 to 8 kHz, shape (bins, 201).

    They equal ``librosa.filters.mel(sr=16000, n_fft=400, n_mels=bins)``, which Whisper uses.
    """
    top = mel_scale(np.array([SAMPLE_RATE / 2]))[0]
    edges = hertz_scale(np.linspace(0, top, bins + 2))
    frequencies = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    areas = (edges[2:] - edges[:-2]) / 2
    return np.asarray(triangles / areas[:, None], np.float32)


@lru_cache
def _window() -> Float32Array:
    """The periodic Hann window, shape (400,)."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)


def pad_or_trim(audio: Float32Array, samples: int) -> Float32Array:
    """Audio (any length,) with zeros appended or the end cut off, shape (samples,)."""
    return np.pad(audio[:samples], (0, max(0, samples - len(audio))))


def log_mel(audio: Float32Array, bins: int) -> Float32Array:
    """Log-mel spectrogram.

    Args:
        audio: mono, 16 kHz, nominally in [-1, 1], shape (samples,), at least 201 samples.
        bins: mel bins.

    Returns:
        ``(log10(power) + 4) / 4`` in mel bins, shape (bins, samples // 160), one frame per 10 ms.
    """
    padded = np.pad(audio.astype(np.float32, copy=False), N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP][: len(audio) // HOP]
    power = np.abs(np.fft.rfft(frames * _window(), axis=-1)) ** 2
    mel = mel_filters(bins) @ power.T.astype(np.float32)
    log = np.log10(np.maximum(mel, 1e-10))
    log = np.maximum(log, log.max() - 8)
    return np.asarray((log + 4) / 4, np.float32)


def log_mel_features(
    audio: Float32Array, *, mel_bins: int, frame_multiple: int, padded_seconds: float | None = None
) -> Float32Array:
    """Log-mel input of an encoder.

    Args:
        audio: mono, 16 kHz, nominally in [-1, 1], shape (samples,).
        mel_bins: mel bins.
        frame_multiple: the number of frames is rounded up to a multiple of this, by zeros after
            the audio.
        padded_seconds: length that audio is padded or trimmed to; ``None`` encodes only what was
            spoken.

    Returns:
        Shape (mel bins, frames).
    """
    block = frame_multiple * HOP
    samples = len(audio) if padded_seconds is None else round(padded_seconds * SAMPLE_RATE)
    return log_mel(pad_or_trim(audio, max(1, -(-samples // block)) * block), mel_bins)
