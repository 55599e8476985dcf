"""How fast each backend encodes, and what int8 costs: ``python -m benchmarks.encode --json FILE``.

Times are medians of rounds in which the backends take turns on the same input, with the same
number of threads: of a run among others, and of the first one after a pause. Quality is that of
nano's test split, translated from each backend's features.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, Gemma3ForCausalLM

from edge_runtime.artifact import open_artifact
from esrt import bundled
from esrt.arrays import Float32Array
from esrt.benchmark_report import BenchmarkReport, Threshold
from esrt.checkpoint import Checkpoint, open_checkpoint, random_checkpoint
from esrt.cli import exit_on_error
from esrt.config import ModelConfig, named_config
from esrt.errors import CheckFailed
from esrt.features import FRAMES_PER_SECOND
from esrt.manifest import Activations, Precision
from esrt.model import Projector
from esrt.wire import Split
from export.backends import get_recipe
from export.parity import sample_mels
from export.recipe import ExportRecipe, export
from training.corpus.build import CORPUS, Corpus, load
from training.evaluate import translate
from training.plots import save
from training.scoring import score

Encode = Callable[[Float32Array], Float32Array]

EAGER, ET_INT8, ORT_INT8 = "torch fp32", "executorch int8", "onnxruntime int8"
# What is measured of each target; int8 alone is its default, dynamic activations.
VARIANTS: dict[str, tuple[Precision, Activations | None]] = {
    "fp32": (Precision.FP32, None),
    "int8": (Precision.INT8, None),
    "int8 static": (Precision.INT8, Activations.STATIC),
}
SPLIT = Split.QFORMER
EXECUTORCH, ONNX = get_recipe("executorch"), get_recipe("onnx")
TARGETS = {"executorch": EXECUTORCH, "onnxruntime": ONNX}
TOOLS = ("torch", "executorch", "onnxruntime")
NANO_SECONDS = (3, 10)
# whisper-small's encoder as the released models are built: padded to 30 s, 80 queries. Beside it
# the same encoder length-aware, with about as many tokens for 30 s.
SMALL = named_config("whisper-small")
SMALL_AWARE = replace(
    SMALL,
    name="whisper-small-length-aware",
    padded=False,
    q_former=replace(SMALL.q_former, queries=1, stride=16, overlap=16),
)
# The threads of one backend wait for more work by spinning, ONNX Runtime's for about 0.1 s, which
# would take a core from the next one. They are awake when this much processor time goes by while
# the process sleeps so long.
_NAP_SECONDS, _AWAKE_SECONDS = 0.02, 0.002
# The first runs after a pause may take twice as long as those that follow them, so a backend runs
# for so long before it is timed.
_WARM_SECONDS = 0.1
# Into so many languages each utterance of the test split goes, in turn.
_DIRECTIONS = 2


def backends(
    checkpoint: Checkpoint, folder: Path, threads: int, variants: Iterable[str] = VARIANTS
) -> tuple[dict[str, Encode], dict[str, str]]:
    """Torch, and every target in each variant, exported anew: log-mel to features, batch 1.

    Returns:
        The backends, and why the others, by name, were refused by their export's own check.
    """
    model = checkpoint.edge_model()
    torch.set_num_threads(threads)

    @torch.inference_mode()
    def eager(mel: Float32Array) -> Float32Array:
        return np.asarray(model.features(torch.from_numpy(mel[None])).numpy()[0])

    runs: dict[str, Encode] = {EAGER: eager}
    refused: dict[str, str] = {}
    for name, target in TARGETS.items():
        for variant in variants:
            backend = f"{name} {variant}"
            try:
                runs[backend] = _exported(target, checkpoint, folder, variant, threads)
            except CheckFailed as error:
                if VARIANTS[variant][1] is None:
                    raise
                # Calibrated ranges may not do for every model.
                refused[f"{checkpoint.config.name} {backend}"] = error.cause
    return runs, refused


def _exported(
    target: ExportRecipe, checkpoint: Checkpoint, folder: Path, variant: str, threads: int
) -> Encode:
    model, (precision, activations) = checkpoint.config.name, VARIANTS[variant]
    out = folder / f"{model}-{target.kind}-{variant.replace(' ', '-')}"
    with Console(stderr=True).status(f"exporting {model} to {target.title}, {variant}"):
        export(target, checkpoint, out, precision, SPLIT, activations=activations)
    return open_artifact(out).backend(threads=threads).encode


def speech(config: ModelConfig, seconds: float) -> Float32Array:
    """That much of the bundled clips, over and over: (128, frames)."""
    clips = np.concatenate(list(sample_mels(replace(config, padded=False))), axis=1)
    frames = int(seconds * FRAMES_PER_SECOND) // config.frame_multiple * config.frame_multiple
    return np.ascontiguousarray(np.resize(clips.T, (frames, config.encoder.mel_bins)).T)


def medians(
    runs: Mapping[str, Callable[[], Float32Array]], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds of each, which take turns.

    Returns:
        Of a run among others, and of the first one after a pause.
    """
    warm: dict[str, list[float]] = {name: [] for name in runs}
    first: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            settle()
            start = time.perf_counter()
            first[name].append(_timed(run))
            while time.perf_counter() - start < _WARM_SECONDS:
                run()
            warm[name].append(_timed(run))
    return _medians(warm), _medians(first)


def _timed(run: Callable[[], Float32Array]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def _medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def settle() -> None:
    """Wait until no thread of this process is busy."""
    awake = True
    while awake:
        used = time.process_time()
        time.sleep(_NAP_SECONDS)
        awake = time.process_time() - used > _AWAKE_SECONDS


def _on(runs: dict[str, Encode], mel: Float32Array) -> dict[str, Callable[[], Float32Array]]:
    return {name: partial(run, mel) for name, run in runs.items()}


def measure_small(
    folder: Path, threads: int, rounds: int
) -> tuple[tuple[dict[str, float], dict[str, float]], float, dict[str, str]]:
    """Each backend's `medians` for 30 s at whisper-small's size, and `length_3s_over_30s`.

    The third are the backends that were refused; see `backends`.
    """
    runs, refused = backends(random_checkpoint(SMALL), folder, threads, ["int8", "int8 static"])
    padded = speech(SMALL, SMALL.max_seconds)
    ms = medians(_on(runs, padded), rounds)
    aware = random_checkpoint(SMALL_AWARE)
    encode = _exported(EXECUTORCH, aware, folder, "int8", threads)
    pair = {"3 s": partial(encode, speech(SMALL_AWARE, 3)), "30 s": partial(runs[ET_INT8], padded)}
    lengths, _ = medians(pair, rounds)
    return ms, lengths["3 s"] / lengths["30 s"], refused


class _Edge:
    """A backend in the place of the edge model, for `training.evaluate.translate`."""

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
    """Scores of a split, translated from each backend's features."""
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
    """The ratios that are asked for, by case, and what int8 costs on the worst backend."""
    found = []
    for case, ms in times.items():
        found.append(Threshold(f"et_int8_over_ort_int8_{case}", ms[ET_INT8] / ms[ORT_INT8], 1.0))
        found.append(Threshold(f"et_int8_over_eager_fp32_{case}", ms[ET_INT8] / ms[EAGER], 0.5))
    if length is not None:
        found.append(Threshold("length_3s_over_30s", length, 0.15))
    for key, bound in (("chrf", 0.5), ("exact", 1.0)) if scores else ():
        losses = [scores[f"{name} fp32"][key] - scores[f"{name} int8"][key] for name in TARGETS]
        found.append(Threshold(f"int8_{key}_loss", round(max(losses), 3), bound))
    return found


def plot(times: dict[str, dict[str, float]], path: Path) -> None:
    """Draw the times as bars, a panel for each case, as a PNG."""
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


def main(
    json_file: Annotated[Path, typer.Option("--json", help="Write the figures here.")],
    report: Annotated[
        Path | None, typer.Option(help="Draw the comparison as encode.png in this folder.")
    ] = None,
    checkpoint: Annotated[
        Path, typer.Option(help="Checkpoint folder.", show_default="the bundled esrt-nano")
    ] = bundled.CHECKPOINT,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 41,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few rounds of nano, torch and int8 alone, no quality.")
    ] = False,
) -> None:
    """Measure every backend: nano at 3 and 10 s, whisper-small's size at 30 s, int8's price."""
    opened, folder = open_checkpoint(checkpoint), Path("build/benchmarks/encode")
    rounds, variants = (3, ("int8",)) if quick else (rounds, VARIANTS)
    runs, refused = backends(opened, folder, threads, variants)
    measured = {
        f"nano_{seconds}s": medians(_on(runs, speech(opened.config, seconds)), rounds)
        for seconds in NANO_SECONDS
    }
    held_out = None if quick else load(CORPUS, "test").only(opened.config.languages)
    scores = {} if held_out is None else quality(runs, opened, held_out)
    length = None
    if not quick:
        measured["small_30s"], length, more = measure_small(folder, threads, max(3, rounds // 8))
        refused |= more
    times = {case: ms for case, (ms, _) in measured.items()}
    record = BenchmarkReport(
        settings={"threads": threads, "rounds": rounds, "fingerprint": opened.fingerprint},
        rows=[
            {
                "case": case,
                "backend": name,
                "ms": round(value, 3),
                "first_ms": round(first[name], 3),
            }
            for case, (ms, first) in measured.items()
            for name, value in ms.items()
        ],
        bars=bars(times, length, scores),
        tools=TOOLS,
        more={"quality": scores, "refused": refused},
    )
    record.write(json_file)
    if report:
        plot(times, report / "encode.png")
    _print(record)


def _print(record: BenchmarkReport) -> None:
    table = Table(*record.rows[0])
    for row in record.rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    for name, why in record.more["refused"].items():
        print(f"{name} was not exported: {why}")
    for bar in record.bars:
        print(bar)


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
