"""Trimming of a recording to its speech, and the level of the speech, in plain arithmetic.

This module is the reference for other languages, which docs/front-end.md describes. The search
works on 10 ms frames of the difference between samples, in which the low frequencies of room noise
are weak. Whether the sound is a voice is not decided here.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from esrt.arrays import Float32Array
from esrt.features import HOP, SAMPLE_RATE


class SpeechSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of the search for speech, and of its level.

    Attributes:
        noise_share: share of the frames whose change is at most that of the noise.
        above_noise_db: a frame is active if its change is this far above that of the noise, within
            the next limits.
        below_peak_db: a frame further below the loudest frame is never active.
        near_peak_db: a frame nearer to the loudest frame is always active.
        min_frames: shortest run of active frames that counts.
        lead_seconds: audio kept before the first run.
        tail_seconds: audio kept after the last run.
        level_dbfs: mean power of the active frames after leveling.
        voice_probability: least probability of a voice in a window of the voice activity model.
        voice_windows: least number of such windows in speech.
    """

    noise_share: float
    above_noise_db: float
    below_peak_db: float
    near_peak_db: float
    min_frames: int
    lead_seconds: float
    tail_seconds: float
    level_dbfs: float
    voice_probability: float
    voice_windows: int


DEFAULT_SETTINGS = SpeechSettings(
    noise_share=0.1,
    above_noise_db=10.0,
    below_peak_db=40.0,
    near_peak_db=10.0,
    min_frames=3,
    lead_seconds=0.04,
    tail_seconds=0.3,
    level_dbfs=-18.0,
    voice_probability=0.5,
    voice_windows=4,
)


class SpeechBounds(msgspec.Struct, frozen=True):
    """Place and level of the speech in a recording.

    Attributes:
        start: first sample.
        stop: sample after the last.
        offset: mean of the recording's samples.
        gain: factor that brings the speech to its level.
    """

    start: int
    stop: int
    offset: float
    gain: float

    def apply(self, audio: Float32Array) -> Float32Array:
        """Cut the speech out of audio of the recording's length, without offset, at its level."""
        return np.asarray((audio[self.start : self.stop] - self.offset) * self.gain, np.float32)


def find_speech(audio: Float32Array, settings: SpeechSettings) -> SpeechBounds | None:
    """Find the speech in a recording.

    Args:
        audio: mono, 16 kHz, shape (samples,).
        settings: parameters of the search.

    Returns:
        The bounds; ``None`` if nothing is active for long enough.
    """
    frames = len(audio) // HOP
    if frames < settings.min_frames:
        return None
    samples = audio.astype(np.float64)
    offset = float(samples.mean())
    change = _frame_powers(np.diff(samples, prepend=samples[0]))
    noise, peak = np.sort(change)[int(settings.noise_share * frames)], change.max()
    threshold = noise * _ratio(settings.above_noise_db)
    threshold = max(threshold, peak * _ratio(-settings.below_peak_db))
    threshold = min(threshold, peak * _ratio(-settings.near_peak_db))
    active = change > threshold
    edges = np.flatnonzero(np.diff(active, prepend=False, append=False))
    starts, stops = edges[::2], edges[1::2]
    long = stops - starts >= settings.min_frames
    if not long.any():
        return None
    first, last = starts[long][0], stops[long][-1]
    power = _frame_powers(samples - offset)
    level = power[first:last][active[first:last]].mean()
    return SpeechBounds(
        start=max(0, int(first) * HOP - round(settings.lead_seconds * SAMPLE_RATE)),
        stop=min(len(audio), int(last) * HOP + round(settings.tail_seconds * SAMPLE_RATE)),
        offset=offset,
        gain=float(np.sqrt(_ratio(settings.level_dbfs) / level)),
    )


def trim_and_level(audio: Float32Array, settings: SpeechSettings) -> Float32Array:
    """Cut the speech out of a recording and bring it to its level.

    Audio without active frames is returned as it is.

    Args:
        audio: mono, 16 kHz, shape (samples,).
        settings: parameters of the search.

    Returns:
        Shape (speech samples,).
    """
    bounds = find_speech(audio, settings)
    return audio if bounds is None else bounds.apply(audio)


def _frame_powers(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean square of each whole frame, shape (frames,)."""
    frames = len(samples) // HOP
    powers: NDArray[np.float64] = np.square(samples[: frames * HOP].reshape(-1, HOP)).mean(axis=1)
    return powers


def _ratio(decibels: float) -> float:
    """Ratio of two powers."""
    return float(10 ** (decibels / 10))
