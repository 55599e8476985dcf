"""Exports of the largest model: ``python -m benchmarks.full_size --json FILE``.

Each export runs as a command in its own process, whose time and peak memory are measured. The
artifact is then loaded and run on 30 s of speech. The table is printed as Markdown.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.options import JsonOption, RoundsOption, ThreadsOption
from benchmarks.speech import log_mel_speech
from benchmarks.timing import medians
from edge_runtime.artifact import open_artifact
from esrt.benchmark_report import BenchmarkReport, Threshold
from esrt.bundled import REPOSITORY
from esrt.cli import VersionOption, run
from esrt.config import named_config
from esrt.errors import CheckFailed
from esrt.manifest import Precision, read_manifest
from export.backends import get_recipe, kinds
from export.peak_memory import peak_bytes

TOOLS = ("torch", "executorch", "onnxruntime", "coremltools")
PTE_MB, MEMORY_GB = 750, 24


def measure(
    kind: str, model: str, precision: Precision, folder: Path, threads: int, rounds: int
) -> dict[str, Any]:
    """Export, load and run one artifact; return its row of the table.

    Raises:
        CheckFailed: the export failed and printed its own message.
    """
    out = folder / f"{model}-{kind}-{precision}"
    seconds, memory = timed(
        [
            *(sys.executable, f"export/to_{kind}.py", "--checkpoint", f"random:{model}"),
            *("--precision", precision.value, "--out", str(out)),
        ]
    )
    manifest = read_manifest(out)
    row: dict[str, Any] = {
        "kind": kind,
        "precision": precision.value,
        "export_s": round(seconds),
        "export_peak_gb": round(memory / 1e9, 1),
        "size_mb": round(sum((out / name).stat().st_size for name in manifest.files) / 1e6, 1),
        "cosine_min": manifest.parity["cosine_min"],
        "latency_s": None,
        "run_peak_gb": None,
    }
    if kind != "coreml":  # only Apple's systems run Core ML
        row["latency_s"] = round(latency(out, model, threads, rounds), 2)
        peak = peak_bytes(out)
        row["run_peak_gb"] = peak and round(peak / 1e9, 2)
    return row


def timed(command: Sequence[str]) -> tuple[float, int]:
    """Run a command in the repository; return its seconds and peak resident bytes.

    Raises:
        CheckFailed: the exit code is not 0.
    """
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise CheckFailed(
            f"{' '.join(command[1:])} ended with exit code {process.returncode}.",
            "See its message above.",
        )
    return time.monotonic() - started, 1024 * usage.ru_maxrss


def latency(artifact: Path, model: str, threads: int, rounds: int) -> float:
    """Median seconds of one run on the longest input."""
    backend, config = open_artifact(artifact).backend(threads=threads), named_config(model)
    run = partial(backend.encode, log_mel_speech(config, config.max_seconds))
    return medians({"run": run}, rounds)[0]["run"] / 1000


def bars(rows: Sequence[dict[str, Any]]) -> list[Threshold]:
    """Size of the int8 program, and the largest peak memory of all exports."""
    sizes = {(row["kind"], row["precision"]): row["size_mb"] for row in rows}
    thresholds = [
        Threshold("export_peak_gb", max(row["export_peak_gb"] for row in rows), MEMORY_GB)
    ]
    if ("executorch", "int8") in sizes:
        thresholds.append(Threshold("pte_int8_mb", sizes["executorch", "int8"], PTE_MB))
    return thresholds


def main(
    json_file: JsonOption,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="A configuration of esrt/config.py.")
    ] = "esrt-4b",
    precision: Annotated[
        list[Precision] | None,
        typer.Option(metavar="PRECISION", help="fp32, fp16 or int8; may be repeated."),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Kind of export; may be repeated.", show_default="all"),
    ] = None,
    folder: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for the artifacts.")
    ] = Path("build/full-size"),
    threads: ThreadsOption = 2,
    rounds: RoundsOption = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Export nano, and run once.")] = False,
    version: VersionOption = False,
) -> None:
    """Export a model with random weights by the recipes, and measure the artifacts."""
    model, rounds = ("esrt-nano", 1) if quick else (model, rounds)
    chosen_kinds = [get_recipe(name).kind for name in kind] if kind else kinds()
    rows = []
    for chosen in precision or [Precision.INT8]:
        for name in chosen_kinds:
            with Console(stderr=True).status(f"{name} {chosen}"):
                rows.append(measure(name, model, chosen, folder, threads, rounds))
    settings = {"model": model, "threads": threads, "rounds": rounds}
    record = BenchmarkReport(settings=settings, rows=rows, bars=bars(rows), tools=TOOLS)
    record.write(json_file)
    print("| " + " | ".join(rows[0]) + " |")
    print("|---" * len(rows[0]) + "|")
    for row in rows:
        values = ("not run" if value is None else str(value) for value in row.values())
        print("| " + " | ".join(values) + " |")
    for bar in record.bars:
        print(bar)


if __name__ == "__main__":
    run(main)
