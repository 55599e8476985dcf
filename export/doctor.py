"""Examine an exported artifact: ``python -m export.doctor ARTIFACT``.

Prints the share of the arithmetic in optimized and in int8 kernels, the error that int8 causes in
each layer, size and memory, requirements on the device, and whether features and translations still
equal torch's. The exit code is 1 when a linear layer runs on a portable kernel, when more linear
layers of an int8 artifact are in floating point than its manifest lists, or when weights or
features are not the checkpoint's.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from esrt.cli import VersionOption, run
from esrt.errors import CheckFailed, printable
from esrt.manifest import Precision, read_manifest
from export.cli import prepare_libraries

if TYPE_CHECKING:
    from export.diagnosis import Diagnosis


def print_report(console: Console, diagnosis: "Diagnosis") -> None:
    """Print a diagnosis on one screen."""
    console.print(f"[bold]{diagnosis.artifact}[/bold]  {diagnosis.kind} {diagnosis.precision}")
    for label, text in _report_rows(diagnosis):
        console.print(f"  {label:<14} {printable(text)}", markup=False)


def _report_rows(diagnosis: "Diagnosis") -> Iterator[tuple[str, str]]:
    """Yield label and text of each line; continued lines have an empty label."""
    # Imported here: it imports torch.
    from export.parity import summarize

    yield "size", f"{diagnosis.size / 1e6:.1f} MB"
    if diagnosis.peak_memory is None:
        yield "peak memory", "not measurable on this system"
    else:
        size = f"{diagnosis.peak_memory / 1e6:.1f} MB"
        yield "peak memory", f"{size} for one run of the longest input, without the runtime"
    if diagnosis.delegated is None:
        yield "delegated", "unknown: the device decides which of its units runs an operator"
    else:
        yield "delegated", f"optimized kernels run {diagnosis.delegated:.1%} of the multiply-adds"
    if diagnosis.not_delegated != "none":
        yield "not delegated", f"{diagnosis.not_delegated}: on portable kernels, which are slow;"
        yield "", "tensors are copied between them and the optimized kernels"
    if diagnosis.precision is Precision.INT8:
        yield from _int8_rows(diagnosis)
    if diagnosis.parity:
        yield "parity", summarize(diagnosis.parity)
    else:
        yield "parity", "not measured: pass the --checkpoint that it was exported from"
    if diagnosis.texts:
        counts = f"{diagnosis.texts['equal']} of {diagnosis.texts['compared']}"
        yield "translations", f"{counts} are equal to those from torch's features"
    for place, need in enumerate(diagnosis.needs):
        yield "" if place else "needs", need
    for problem in diagnosis.problems:
        yield "PROBLEM", problem


def _int8_rows(diagnosis: "Diagnosis") -> Iterator[tuple[str, str]]:
    """Yield the rows of an int8 artifact: its linear layers, its products, and its errors."""
    # Imported here: it imports torch.
    from export.quantization_error import report_rows

    kept = diagnosis.kept
    floats = f"{len(kept)} of them in floating point: {', '.join(kept)}" if kept else "all int8"
    if diagnosis.only_weights:
        yield "linear layers", f"{diagnosis.linear_layers}; their weights: {floats}"
        yield "int8 products", "none, as the manifest says: weights become floats on the device"
    else:
        yield "linear layers", f"{diagnosis.linear_layers}; their weights and inputs: {floats}"
        yield "int8 products", f"{diagnosis.integer:.1%} of the multiply-adds are int8 by int8"
    yield (
        "float products",
        f"{1 - diagnosis.integer:.1%} of the multiply-adds: {diagnosis.floating}",
    )
    yield from report_rows(diagnosis.layer_errors)


def examine(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder of the artifact.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Checkpoint that the artifact was exported from.",
            show_default="the bundled one, if the artifact was exported from it",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the diagnosis as JSON.")] = False,
    version: VersionOption = False,
) -> None:
    """Examine an exported artifact; the exit code is 1 when it should not be shipped."""
    manifest = read_manifest(artifact)
    prepare_libraries(manifest.kind)
    # Imported here: torch takes seconds, which --help need not.
    from export.diagnosis import find_checkpoint, inspect_artifact

    diagnosis = inspect_artifact(artifact, manifest, find_checkpoint(manifest, checkpoint))
    if as_json:
        print(json.dumps(dataclasses.asdict(diagnosis), indent=2, ensure_ascii=False))
    else:
        print_report(Console(highlight=False, soft_wrap=True), diagnosis)
    if diagnosis.problems:
        raise typer.Exit(CheckFailed.exit_code)


def main() -> None:
    """Run the command line and exit."""
    run(examine)


if __name__ == "__main__":
    main()
