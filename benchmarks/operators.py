"""Where each runtime's time goes: ``python -m benchmarks.operators --json FILE``.

Every runtime's own profiler times its operators on the same input with the same number of threads.
A figure is the sum over an operator's calls of their medians, for torch, whose profiler keeps no
single calls, of their means. ExecuTorch's are XNNPACK's, from its event tracer.
"""

import json
import re
import statistics
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import onnxruntime
import torch
import typer
from executorch.devtools import Inspector
from executorch.extension.pybindings import portable_lib
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.encode import (
    EAGER,
    ET_INT8,
    EXECUTORCH,
    NANO_SECONDS,
    ONNX,
    ORT_INT8,
    SMALL,
    SPLIT,
    TOOLS,
    settle,
    speech,
)
from esrt import bundled
from esrt.arrays import Float32Array
from esrt.benchmark_report import BenchmarkReport
from esrt.checkpoint import Checkpoint, open_checkpoint, random_checkpoint
from esrt.cli import exit_on_error
from esrt.manifest import Precision
from export.recipe import export

BACKENDS = (EAGER, ET_INT8, ORT_INT8)
# Milliseconds of a run, and how many calls it holds, by the runtime's name of an operator.
Times = dict[str, tuple[float, float]]

# What an operator is for, by the first pattern that its name holds. Layer norms are ExecuTorch's
# products with one column (export/backends/xnnpack/rewrite.py), its only linear layers in
# floating point. Torch's attention is one operator, softmax and all.
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
    """What an operator is for."""
    found = (name for name, pattern in GROUPS.items() if re.search(pattern, operator))
    return next(found, OTHER)


def executorch(path: Path, mel: Float32Array, threads: int, rounds: int) -> Times:
    """XNNPACK's operators and ExecuTorch's kernels around them, in a program's runs."""
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
    """ONNX Runtime's operators."""
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
    """Torch's operators, in float32."""
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
    """Every runtime's operators for so much speech, in int8 but for torch."""
    mel = speech(checkpoint.config, seconds)
    found = {EAGER: eager(checkpoint, mel, threads, rounds)}
    for name, target, profiled in (
        (ET_INT8, EXECUTORCH, executorch),
        (ORT_INT8, ONNX, onnx),
    ):
        settle()
        found[name] = profiled(artifacts[target.kind] / target.entry, mel, threads, rounds)
    return found


def exported(checkpoint: Checkpoint, folder: Path) -> dict[str, Path]:
    """The int8 artifacts of a model, by kind, made anew."""
    artifacts: dict[str, Path] = {}
    for target in (EXECUTORCH, ONNX):
        out = artifacts[target.kind] = folder / f"{checkpoint.config.name}-{target.kind}"
        with Console(stderr=True).status(f"exporting {out.name}"):
            export(target, checkpoint, out, Precision.INT8, SPLIT)
    return artifacts


def rows(case: str, measured: dict[str, Times]) -> list[dict[str, Any]]:
    """One row for each operator, the slowest first."""
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


def table(found: list[dict[str, Any]], case: str) -> Table:
    """Milliseconds by group and backend."""
    shown = Table(case, *BACKENDS)
    for name in (*GROUPS, OTHER, "all"):
        sums = [0.0, 0.0, 0.0]
        for row in found:
            if row["case"] == case and name in (row["group"], "all"):
                sums[BACKENDS.index(row["backend"])] += row["ms"]
        shown.add_row(name, *(f"{value:.2f}" for value in sums))
    return shown


def main(
    json_file: Annotated[Path, typer.Option("--json", help="Write the figures here.")],
    checkpoint: Annotated[
        Path, typer.Option(help="Checkpoint folder.", show_default="the bundled esrt-nano")
    ] = bundled.CHECKPOINT,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 21,
    quick: Annotated[bool, typer.Option("--quick", help="Not the small model.")] = False,
) -> None:
    """Profile nano at 3 and 10 s, and whisper-small's size at 30 s."""
    folder = Path("build/benchmarks/operators")
    found: list[dict[str, Any]] = []
    opened = open_checkpoint(checkpoint)
    artifacts = exported(opened, folder)
    for seconds in NANO_SECONDS:
        measured = measure(opened, seconds, artifacts, threads, rounds)
        found += rows(f"nano_{seconds}s", measured)
    if not quick:
        small = random_checkpoint(SMALL)
        artifacts = exported(small, folder)
        measured = measure(small, SMALL.max_seconds, artifacts, threads, max(3, rounds // 7))
        found += rows("small_30s", measured)
    settings = {"threads": threads, "rounds": rounds, "fingerprint": opened.fingerprint}
    BenchmarkReport(settings=settings, rows=found, bars=[], tools=TOOLS).write(json_file)
    for case in dict.fromkeys(row["case"] for row in found):
        Console().print(table(found, case))


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
