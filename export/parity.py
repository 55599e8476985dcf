"""Parity: features of the bundled clips from an artifact, compared with torch's."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
import torch

from esrt.arrays import Float32Array
from esrt.bundled import SAMPLES
from esrt.config import ModelConfig
from esrt.errors import CheckFailed, CheckpointError
from esrt.features import FRAMES_PER_SECOND, HOP, log_mel_features
from esrt.manifest import Precision
from esrt.speech import DEFAULT_SETTINGS, trim_and_level
from export.graph_io import Runner
from export.tracing import DeviceGraph

# Speech that is compared: all bundled clips, or four of them if each is padded to 30 s.
_MAX_SECONDS = 120


@dataclass(frozen=True)
class Bounds:
    """Bounds of the comparison.

    Attributes:
        cosine: smallest cosine similarity between a token's features and torch's.
        error: largest absolute error of a feature.
    """

    cosine: float
    error: float


# fp32 differs by the order of summation only. Features have a standard deviation of about 1.7.
BOUNDS: dict[Precision, Bounds] = {
    Precision.FP32: Bounds(cosine=0.99999, error=1e-3),
    Precision.FP16: Bounds(cosine=0.9995, error=0.1),
    Precision.INT8: Bounds(cosine=0.995, error=0.5),
}


def sample_mels(config: ModelConfig, lengths: Sequence[int] = ()) -> Iterator[Float32Array]:
    """Yield log-mels of the bundled clips, (mel bins, frames), cut to the model's longest input.

    The clips end after two minutes of padded speech, which bounds the time for large models.

    Args:
        config: configuration of the model.
        lengths: mel frames that the graph takes, in rising order. A clip is padded to the next of
            them, or cut to the last. Empty for every length.

    Raises:
        CheckpointError: the clips are missing.
    """
    index = SAMPLES / "index.json"
    if not index.exists():
        raise CheckpointError(
            f"The clips that parity is measured on are missing: no {index}.",
            "Make them: python -m training.corpus samples.",
        )
    frames = 0
    for row in json.loads(index.read_text("utf-8")):
        audio = read_audio(row["file"])
        mel = log_mel_features(
            audio,
            mel_bins=config.encoder.mel_bins,
            frame_multiple=config.frame_multiple,
            padded_seconds=_padded_seconds(len(audio), lengths)
            if lengths
            else config.padded_seconds,
        )
        yield np.ascontiguousarray(mel[:, : config.max_frames])
        frames += mel.shape[1]
        if frames >= _MAX_SECONDS * FRAMES_PER_SECOND:
            return


def read_audio(name: str) -> Float32Array:
    """Read the speech of a bundled clip: mono, 16 kHz, (samples,)."""
    audio, _ = soundfile.read(SAMPLES / name, dtype="float32")
    return trim_and_level(audio, DEFAULT_SETTINGS)


def _padded_seconds(samples: int, lengths: Sequence[int]) -> float:
    long_enough = (frames for frames in lengths if frames * HOP >= samples)
    return next(long_enough, lengths[-1]) / FRAMES_PER_SECOND


def _other_lengths(
    mel: Float32Array, config: ModelConfig, lengths: Sequence[int]
) -> Iterator[Float32Array]:
    """Yield speech of each of the graph's lengths, or of the shortest and the longest."""
    repeated = np.tile(mel, -(-config.max_frames // mel.shape[1]))
    for frames in lengths or (config.frame_multiple, config.max_frames):
        yield np.ascontiguousarray(repeated[:, :frames])


@torch.inference_mode()
def measure(graph: DeviceGraph, run: Runner, lengths: Sequence[int] = ()) -> dict[str, float]:
    """Compare an artifact with torch on the clips, and on the shortest and the longest input.

    Args:
        graph: the reference in torch.
        run: the artifact's runner.
        lengths: mel frames that the graph takes, in rising order; empty for every length.

    Returns:
        ``cosine_min`` and ``cosine_mean`` over tokens, ``error_max`` over features, and the number
        of ``clips``.
    """
    cosines, errors = [], []
    clips = list(sample_mels(graph.model.config, lengths))
    for mel in (*clips, *_other_lengths(clips[0], graph.model.config, lengths)):
        expected = graph(torch.from_numpy(mel[None])).numpy()[0].astype(np.float64)
        features = run(mel[None])[0].astype(np.float64)
        norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(features, axis=1)
        cosines.append((expected * features).sum(axis=1) / norms)
        errors.append(np.abs(expected - features).max())
    all_cosines = np.concatenate(cosines)
    return {
        "cosine_min": round(float(all_cosines.min()), 6),
        "cosine_mean": round(float(all_cosines.mean()), 6),
        "error_max": round(float(max(errors)), 6),
        "clips": len(clips),
    }


def summarize(figures: dict[str, float]) -> str:
    """One line for the reports."""
    return (
        f"cosine of a token's features with torch's: least {figures['cosine_min']:g}, mean"
        f" {figures['cosine_mean']:g}; largest difference {figures['error_max']:g};"
        f" {figures['clips']:g} clips"
    )


def check(figures: dict[str, float], bounds: Bounds) -> None:
    """Fail an export whose features are out of bounds.

    Raises:
        CheckFailed: names the figures and the bounds.
    """
    # NaN fails these comparisons.
    if figures["cosine_min"] >= bounds.cosine and figures["error_max"] <= bounds.error:
        return
    raise CheckFailed(
        f"The exported graph's features are not torch's: smallest cosine {figures['cosine_min']} "
        f"(bound {bounds.cosine}), largest error {figures['error_max']} (bound {bounds.error}).",
        "Nothing was written; export at a higher precision.",
    )
