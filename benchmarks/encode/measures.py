"""Measurements of encoding time and quality, and their table and plot."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, Gemma3ForCausalLM

from benchmarks.speech import log_mel_speech
from benchmarks.timing import medians
from edge_runtime.artifact import open_artifact
from esrt.arrays import Float32Array
from esrt.benchmark_report import BenchmarkReport, Threshold
from esrt.checkpoint import Checkpoint, random_checkpoint
from esrt.config import ModelConfig, named_config
from esrt.errors import CheckFailed
from esrt.manifest import Activations, Precision
from esrt.model import Projector
from esrt.wire import Split
from export.backends import get_recipe
from export.recipe import ExportRecipe, export
from training.corpus.build import Corpus
from training.plots import save
from training.scoring import score
from training.translation import translate

Encode = Callable[[Float32Array], Float32Array]

EAGER, ET_INT8, ORT_INT8 = "torch fp32", "executorch int8", "onnxruntime int8"
# Variants of each export recipe. Plain int8 has dynamic activations, the default.
VARIANTS: dict[str, tuple[Precision, Activations | None]] = {
    "fp32": (Precision.FP32, None),
    "int8": (Precision.INT8, None),
    "int8 static": (Precision.INT8, Activations.STATIC),
}
EXECUTORCH, ONNX = get_recipe("executorch"), get_recipe("onnx")
SPLIT = Split.QFORMER
RECIPES = {"executorch": EXECUTORCH, "onnxruntime": ONNX}
TOOLS = ("torch", "executorch", "onnxruntime")
_SECONDS = (3, 10, 30)
# The encoder of whisper-small in a model like the released ones: padded to 30 s, with 80 queries.
# For comparison, the same encoder length-aware, with about as many tokens for 30 s.
SMALL = named_config("whisper-small")
SMALL_AWARE = replace(
    SMALL,
    name="whisper-small-length-aware",
    padded=False,
    q_former=replace(SMALL.q_former, queries=1, stride=16, overlap=16),
)
# Target languages of each utterance of the test split.
_DIRECTIONS = 2


def cases(config: ModelConfig) -> dict[str, int]:
    """Seconds of speech that a model's input can hold, by the names of their figures."""
    name = config.name.removeprefix("esrt-")
    return {f"{name}_{seconds}s": seconds for seconds in _SECONDS if seconds <= config.max_seconds}


def backends(
    checkpoint: Checkpoint, folder: Path, threads: int, variants: Iterable[str] = VARIANTS
) -> tuple[dict[str, Encode], dict[str, str]]:
    """Torch, and a new export by every recipe in each variant.

    Returns:
        Functions from log-mel (mel bins, frames) to features (tokens, width), by backend; and the
        reasons why exports failed their own check, by backend.
    """
    model = checkpoint.edge_model()
    torch.set_num_threads(threads)

    @torch.inference_mode()
    def eager(mel: Float32Array) -> Float32Array:
        return np.asarray(model.features(torch.from_numpy(mel[None])).numpy()[0])

    runs: dict[str, Encode] = {EAGER: eager}
    failed: dict[str, str] = {}
    for name, recipe in RECIPES.items():
        for variant in variants:
            backend = f"{name} {variant}"
            try:
                runs[backend] = _exported(recipe, checkpoint, folder, variant, threads)
            except CheckFailed as error:
                if VARIANTS[variant][1] is None:
                    raise
                # Static ranges do not fit every model.
                failed[f"{checkpoint.config.name} {backend}"] = error.cause
    return runs, failed


def _exported(
    recipe: ExportRecipe, checkpoint: Checkpoint, folder: Path, variant: str, threads: int
) -> Encode:
    model, (precision, activations) = checkpoint.config.name, VARIANTS[variant]
    out = folder / f"{model}-{recipe.kind}-{variant.replace(' ', '-')}"
    with Console(stderr=True).status(f"exporting {model} to {recipe.title}, {variant}"):
        export(recipe, checkpoint, out, precision, SPLIT, activations=activations)
    return open_artifact(out).backend(threads=threads).encode


def bind_input(runs: dict[str, Encode], mel: Float32Array) -> dict[str, Callable[[], Float32Array]]:
    """Bind each backend to a log-mel."""
    return {name: partial(run, mel) for name, run in runs.items()}


def measure_small(
    folder: Path, threads: int, rounds: int
) -> tuple[tuple[dict[str, float], dict[str, float]], float, dict[str, str]]:
    """Measure every backend on 30 s at the size of whisper-small.

    Returns:
        `medians` of the backends; the time for 3 s over that for 30 s (``length_3s_over_30s``); and
        failed exports as in `backends`.
    """
    runs, failed = backends(random_checkpoint(SMALL), folder, threads, ["int8", "int8 static"])
    padded = log_mel_speech(SMALL, SMALL.max_seconds)
    ms = medians(bind_input(runs, padded), rounds)
    aware = random_checkpoint(SMALL_AWARE)
    encode = _exported(EXECUTORCH, aware, folder, "int8", threads)
    pair = {
        "3 s": partial(encode, log_mel_speech(SMALL_AWARE, 3)),
        "30 s": partial(runs[ET_INT8], padded),
    }
    lengths, _ = medians(pair, rounds)
    return ms, lengths["3 s"] / lengths["30 s"], failed


class _Edge:
    """A backend with the interface of the edge model, for `training.translation.translate`."""

    def __init__(self, encode: Encode, projector: Projector, config: ModelConfig) -> None:
        self._encode, self._projector, self.config = encode, projector, config

    def __call__(self, mel: Tensor, frames: Tensor) -> Tensor:
        rows = [
            torch.from_numpy(self._encode(np.ascontiguousarray(row[:, :count].numpy())))
            for row, count in zip(mel, frames, strict=True)
        ]
        projected: Tensor = self._projector(pad_sequence(rows, batch_first=True))
        return projected


def quality(
    runs: dict[str, Encode], checkpoint: Checkpoint, corpus: Corpus
) -> dict[str, dict[str, Any]]:
    """Scores of a corpus split, translated from the features of each backend."""
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    projector = checkpoint.projector()
    edges = {name: _Edge(run, projector, checkpoint.config) for name, run in runs.items()}
    return {
        name: score(translate(edge, decoder, tokenizer, corpus, directions=_DIRECTIONS))
        for name, edge in track(edges.items(), description="translating", total=len(runs))
    }


def bars(
    times: dict[str, dict[str, float]], length: float | None, scores: dict[str, dict[str, Any]]
) -> list[Threshold]:
    """Ratios of times in each case, and the loss by int8 on the worst backend."""
    thresholds = []
    for case, ms in times.items():
        thresholds.append(
            Threshold(f"et_int8_over_ort_int8_{case}", ms[ET_INT8] / ms[ORT_INT8], 1.0)
        )
        thresholds.append(
            Threshold(f"et_int8_over_eager_fp32_{case}", ms[ET_INT8] / ms[EAGER], 0.5)
        )
    if length is not None:
        thresholds.append(Threshold("length_3s_over_30s", length, 0.15))
    for key, bound in (("chrf", 0.5), ("exact", 1.0)) if scores else ():
        losses = [scores[f"{name} fp32"][key] - scores[f"{name} int8"][key] for name in RECIPES]
        thresholds.append(Threshold(f"int8_{key}_loss", round(max(losses), 3), bound))
    return thresholds


def plot(times: dict[str, dict[str, float]], path: Path) -> None:
    """Draw the times as bars, with a panel for each case, as a PNG."""
    figure = Figure(figsize=(4 * len(times), 3.2))
    panels = figure.subplots(1, len(times), squeeze=False)
    for axes, (case, ms) in zip(panels[0], times.items(), strict=True):
        bars_drawn = axes.barh(list(ms), list(ms.values()))
        axes.bar_label(bars_drawn, fmt="%.1f", padding=2)
        axes.invert_yaxis()
        axes.margins(x=0.3)
        axes.set_title(case)
        axes.set_xlabel("ms")
    figure.tight_layout()
    save(figure, path)


def print_report(record: BenchmarkReport) -> None:
    """Print the times, the failed exports and the thresholds."""
    table = Table(*record.rows[0])
    for row in record.rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    for name, reason in record.more["refused"].items():
        print(f"{name} was not exported: {reason}")
    for bar in record.bars:
        print(bar)
