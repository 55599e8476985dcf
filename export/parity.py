"""Is an artifact still the model? Features of the bundled clips, torch against the graph."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from esrt.arrays import Float32Array
from esrt.bundled import SAMPLES
from esrt.config import ModelConfig
from esrt.errors import CheckFailed, CheckpointError
from esrt.features import FRAMES_PER_SECOND, HOP, log_mel_features
from esrt.manifest import Precision
from export.tracing import DeviceGraph

Runner = Callable[[Float32Array], Float32Array]

# So much speech is compared: all bundled clips, or four of them where each is padded to 30 s.
_ENOUGH_SECONDS = 120


@dataclass(frozen=True)
class Bounds:
    """The least cosine of any token with torch's, and the largest error of any number."""

    cosine: float
    error: float


# fp32 differs by the order of summation only. The features' standard deviation is about 1.7.
BOUNDS: dict[Precision, Bounds] = {
    Precision.FP32: Bounds(cosine=0.99999, error=1e-3),
    Precision.FP16: Bounds(cosine=0.9995, error=0.1),
    Precision.INT8: Bounds(cosine=0.995, error=0.5),
}


def sample_mels(
    config: ModelConfig, lengths: Sequence[int] = (), folder: Path = SAMPLES
) -> Iterator[Float32Array]:
    """The log-mels of the bundled clips, cut to the longest that this model takes: (128, frames).

    The last is the one that completes two minutes, so that large padded models are compared in
    minutes too. With ``lengths`` (frames, rising) a clip is padded to the next of them, or cut to
    the last.

    Raises:
        CheckpointError: the clips are missing.
    """
    index = folder / "index.json"
    if not index.exists():
        raise CheckpointError(
            f"No speech to measure parity on: {index} is missing.",
            "Write it: python -m training.corpus samples.",
        )
    frames = 0
    for row in json.loads(index.read_text("utf-8")):
        audio = read_audio(row["file"], folder)
        mel = log_mel_features(
            audio,
            frame_multiple=config.frame_multiple,
            padded_seconds=_padded_seconds(len(audio), lengths)
            if lengths
            else config.padded_seconds,
        )
        yield np.ascontiguousarray(mel[:, : config.max_frames])
        frames += mel.shape[1]
        if frames >= _ENOUGH_SECONDS * FRAMES_PER_SECOND:
            return


def read_audio(name: str, folder: Path = SAMPLES) -> Float32Array:
    """A bundled clip: mono, 16 kHz, (samples,)."""
    audio, _ = soundfile.read(folder / name, dtype="float32")
    return np.asarray(audio)


def _padded_seconds(samples: int, lengths: Sequence[int]) -> float:
    fitting = (frames for frames in lengths if frames * HOP >= samples)
    return next(fitting, lengths[-1]) / FRAMES_PER_SECOND


def _others(
    mel: Float32Array, config: ModelConfig, lengths: Sequence[int]
) -> Iterator[Float32Array]:
    """Speech of lengths that the clips may lack: each one asked for, or the two extremes."""
    repeated = np.tile(mel, -(-config.max_frames // mel.shape[1]))
    for frames in lengths or (config.frame_multiple, config.max_frames):
        yield np.ascontiguousarray(repeated[:, :frames])


@torch.inference_mode()
def measure(graph: DeviceGraph, run: Runner, lengths: Sequence[int] = ()) -> dict[str, float]:
    """Compare torch with an artifact on every clip, and on the lengths between which they lie.

    Args:
        graph: the torch side.
        run: the artifact: (1, 128, frames) to (1, tokens, width).
        lengths: the frames that it takes, rising; none for every length up to the longest.

    Returns:
        ``cosine_min`` and ``cosine_mean`` over tokens, ``error_max`` over all numbers, ``clips``.
    """
    cosines, errors = [], []
    clips = list(sample_mels(graph.model.config, lengths))
    for mel in (*clips, *_others(clips[0], graph.model.config, lengths)):
        expected = graph(torch.from_numpy(mel[None])).numpy()[0].astype(np.float64)
        found = run(mel[None])[0].astype(np.float64)
        norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        cosines.append((expected * found).sum(axis=1) / norms)
        errors.append(np.abs(expected - found).max())
    every = np.concatenate(cosines)
    return {
        "cosine_min": round(float(every.min()), 6),
        "cosine_mean": round(float(every.mean()), 6),
        "error_max": round(float(max(errors)), 6),
        "clips": len(clips),
    }


def check(figures: dict[str, float], bounds: Bounds) -> None:
    """Fail an export whose features are out of bounds.

    Raises:
        CheckFailed: with the figures and the bounds.
    """
    # Written so that a NaN fails.
    if figures["cosine_min"] >= bounds.cosine and figures["error_max"] <= bounds.error:
        return
    raise CheckFailed(
        f"The exported graph's features are not torch's: least cosine {figures['cosine_min']} "
        f"(at least {bounds.cosine}), largest error {figures['error_max']} "
        f"(at most {bounds.error}).",
        "Nothing was written; export at a higher precision.",
    )
