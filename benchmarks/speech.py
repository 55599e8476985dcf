"""Speech of any length, made of the bundled clips."""

from collections.abc import Sequence

import numpy as np
import soundfile

from esrt.arrays import Float32Array
from esrt.bundled import SAMPLES
from esrt.config import ModelConfig
from esrt.features import FRAMES_PER_SECOND, SAMPLE_RATE, log_mel


def read_clips() -> list[Float32Array]:
    """Read the bundled clips: mono, 16 kHz, (samples,) each."""
    files = sorted(SAMPLES.glob("*.flac"))
    return [np.asarray(soundfile.read(file, dtype="float32")[0]) for file in files]


def join_clips(clips: Sequence[Float32Array], seconds: float, first: int = 0) -> Float32Array:
    """Join clips, beginning with one of them, and cut the result to a length: (samples,)."""
    index, parts, missing = first, list[Float32Array](), round(seconds * SAMPLE_RATE)
    while missing > 0:
        parts.append(clips[index % len(clips)][:missing])
        missing -= len(parts[-1])
        index += 1
    return np.concatenate(parts)


def log_mel_speech(config: ModelConfig, seconds: float) -> Float32Array:
    """Log-mel of joined clips, as a model takes it: (mel bins, frames)."""
    frames = int(seconds * FRAMES_PER_SECOND) // config.frame_multiple * config.frame_multiple
    mel = log_mel(join_clips(read_clips(), seconds), config.encoder.mel_bins)
    return np.ascontiguousarray(mel[:, :frames])
