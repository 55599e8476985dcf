"""Profiles of the runtimes by operator, and their table."""

import json
import re
import statistics
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime
import torch
from executorch.devtools import Inspector
from executorch.extension.pybindings import portable_lib
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.encode.measures import (
    EAGER,
    ET_INT8,
    EXECUTORCH,
    ONNX,
    ORT_INT8,
    SPLIT,
)
from benchmarks.speech import log_mel_speech
from benchmarks.timing import settle
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint
from esrt.manifest import Precision
from export.recipe import export

BACKENDS = (EAGER, ET_INT8, ORT_INT8)
# Milliseconds and calls in a run, by the runtime's name of an operator.
Times = dict[str, tuple[float, float]]

# Groups of operators, by the first pattern found in the name. ExecuTorch computes layer norms by
# products with one column (export/backends/xnnpack/rewrite.py), its only linear layers in floating
# point. Torch's attention is one operator, which includes the softmax.
GROUPS = {
    "linear layers": r"QDU?8, |Quantize|MatMulInteger|aten::(addmm|mm)$",
    "attention's products": r"Batch Matrix Multiply|MatMul|aten::bmm|scaled_dot_product_flash",
    "softmax": r"[Ss]oftmax",
    "convolutions": r"[Cc]onv(olution)?( |$|_)|aten::\w*convolution",
    "GELU": r"(?i)gelu",
    "norms and sums": r"Fully Connected|Square|Multiply|Add|Subtract|Reciprocal|LayerNorm|Mul"
    r"|Simplified|aten::(native_layer_norm|add_?|mul)$",
}
OTHER = "copies, conversions, the rest"


def group(operator: str) -> str:
    """Group of an operator."""
    matching = (name for name, pattern in GROUPS.items() if re.search(pattern, operator))
    return next(matching, OTHER)


def executorch(path: Path, mel: Float32Array, threads: int, rounds: int) -> Times:
    """Profile XNNPACK's operators and ExecuTorch's own kernels in a program."""
    portable_lib._unsafe_reset_threadpool(threads)
    module = portable_lib._load_for_executorch(str(path), enable_etdump=True)
    for _ in range(rounds):
        module.forward([torch.from_numpy(mel[None])])
    with TemporaryDirectory() as folder:
        dump = Path(folder) / "dump.etdp"
        module.write_etdump_result_to_file(str(dump))
        blocks = Inspector(etdump_path=str(dump)).event_blocks
    (run,) = (block for block in blocks if block.name == "Execute")
    totals: dict[str, list[float]] = defaultdict(list)
    for event in run.events:
        kernel = event.name.startswith("native_call_")
        if event.perf_data is not None and (event.is_delegated_op or kernel):
            totals[re.sub(r" #\d+$", "", event.name)].append(event.perf_data.p50)
    return _sums(totals)


def _sums(calls: dict[str, list[float]]) -> Times:
    return {name: (float(sum(values)), len(values)) for name, values in calls.items()}


def onnx(path: Path, mel: Float32Array, threads: int, rounds: int) -> Times:
    """Profile ONNX Runtime's operators."""
    totals: dict[str, list[float]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(rounds):
            session.run(None, {session.get_inputs()[0].name: mel[None]})
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    nodes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            nodes[event["args"]["op_name"], event["name"]].append(event["dur"] / 1000)
    for (name, _), values in nodes.items():
        totals[name].append(statistics.median(values))
    return _sums(totals)


def eager(checkpoint: Checkpoint, mel: Float32Array, threads: int, rounds: int) -> Times:
    """Profile torch's operators, in float32."""
    torch.set_num_threads(threads)
    model = checkpoint.edge_model()
    values = torch.from_numpy(mel[None])
    with torch.inference_mode():
        model.features(values)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(rounds):
                model.features(values)
    return {
        event.key: (event.self_cpu_time_total / 1000 / rounds, event.count / rounds)
        for event in profiled.key_averages()
    }


def measure(
    checkpoint: Checkpoint, seconds: float, artifacts: dict[str, Path], threads: int, rounds: int
) -> dict[str, Times]:
    """Profile every runtime on speech of a length: torch in float32, the others in int8."""
    mel = log_mel_speech(checkpoint.config, seconds)
    measured = {EAGER: eager(checkpoint, mel, threads, rounds)}
    for name, recipe, profiled in (
        (ET_INT8, EXECUTORCH, executorch),
        (ORT_INT8, ONNX, onnx),
    ):
        settle()
        measured[name] = profiled(artifacts[recipe.kind] / recipe.entry, mel, threads, rounds)
    return measured


def exported(checkpoint: Checkpoint, folder: Path) -> dict[str, Path]:
    """Export a model to int8 by both recipes; return the artifacts by kind."""
    artifacts: dict[str, Path] = {}
    for recipe in (EXECUTORCH, ONNX):
        out = artifacts[recipe.kind] = folder / f"{checkpoint.config.name}-{recipe.kind}"
        with Console(stderr=True).status(f"exporting {out.name}"):
            export(recipe, checkpoint, out, Precision.INT8, SPLIT)
    return artifacts


def rows(case: str, measured: dict[str, Times]) -> list[dict[str, Any]]:
    """A row for each operator, the slowest first."""
    return [
        {
            "case": case,
            "backend": backend,
            "group": group(name),
            "operator": name,
            "calls": calls,
            "ms": round(ms, 3),
        }
        for backend, times in measured.items()
        for name, (ms, calls) in sorted(times.items(), key=lambda item: -item[1][0])
    ]


def table(all_rows: list[dict[str, Any]], case: str) -> Table:
    """Milliseconds by group and backend."""
    shown = Table(case, *BACKENDS)
    for name in (*GROUPS, OTHER, "all"):
        sums = [0.0, 0.0, 0.0]
        for row in all_rows:
            if row["case"] == case and name in (row["group"], "all"):
                sums[BACKENDS.index(row["backend"])] += row["ms"]
        shown.add_row(name, *(f"{value:.2f}" for value in sums))
    return shown
