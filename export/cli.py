"""The command line that all targets share, and the report that it prints."""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from esrt import bundled
from esrt.cli import exit_on_error
from esrt.errors import printable
from esrt.manifest import Activations, Manifest, Precision, Quantization
from esrt.wire import Split
from export.checkpoint_source import open_source
from export.progress import progress_listener, report_progress
from export.recipe import Exported, ExportRecipe, export

# How many layers the report names.
_WORST = 3


def run(target: ExportRecipe) -> None:
    """Export to a target as the command line says; does not return."""

    def main(
        checkpoint: Annotated[
            str,
            typer.Option(
                help="A folder, ours or a released one; a Hugging Face id, as yxdu/ESRT-4B; or"
                " random weights, as random:esrt-4b."
            ),
        ] = str(bundled.CHECKPOINT),
        precision: Annotated[Precision, typer.Option()] = Precision.INT8,
        split: Annotated[Split, typer.Option(help="Where the cloud takes over.")] = Split.QFORMER,
        seconds: Annotated[
            list[float] | None,
            typer.Option(
                help="A length that the graph is made for; may be repeated. One of them fixes the"
                " shape of the input. Default: what the model was trained for."
            ),
        ] = None,
        activations: Annotated[
            Activations,
            typer.Option(
                help="What int8 layers make of their inputs; here:"
                f" {', '.join(target.activations)}."
            ),
        ] = target.activations[0],
        out: Annotated[
            Path | None,
            typer.Option(
                help=f"Artifact folder; default build/artifacts/MODEL-{target.kind}-PRECISION."
            ),
        ] = None,
    ) -> None:
        _export(target, checkpoint, precision, split, seconds or [], activations, out)

    main.__doc__ = (
        f"Export encoder and Q-Former (and projector, with --split adapter) to {target.title}."
    )
    # The exporters narrate through these; the report says what matters.
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    typer.run(main)


def _export(
    target: ExportRecipe,
    checkpoint: str,
    precision: Precision,
    split: Split,
    seconds: list[float],
    activations: Activations,
    out: Path | None,
) -> None:
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    with exit_on_error(), _shown(console):
        report_progress("reading the checkpoint")
        opened = open_source(checkpoint)
        if out is None:
            name = f"{opened.config.name}-{target.kind}-{precision}"
            out = Path("build/artifacts") / (f"{name}-adapter" if split is Split.ADAPTER else name)
        exported = export(
            target,
            opened,
            out,
            precision,
            split,
            seconds=seconds,
            activations=activations if precision is Precision.INT8 else None,
        )
    _report(console, exported, out, time.monotonic() - started)


@contextmanager
def _shown(console: Console) -> Iterator[None]:
    """Show each step with the time that it takes, on a terminal."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        tasks: list[TaskID] = []

        def begin(doing: str) -> None:
            for task in tasks:
                progress.update(task, total=1, completed=1)
            tasks.append(progress.add_task(doing, total=None))

        with progress_listener(begin):
            yield


def _precision(manifest: Manifest) -> str:
    quantization = manifest.quantization
    if quantization is None:
        return manifest.precision
    return f"{manifest.precision}, {quantization.activations} activations"


def _layers(quantization: Quantization | None) -> Iterator[tuple[str, str]]:
    """What int8 costs the layers, the worst first, and those that it is not done to."""
    if quantization is None:
        return
    worst = sorted(quantization.errors.items(), key=lambda item: -item[1])[:_WORST]
    if worst:
        yield "layer error", ", ".join(f"{error:.2%} {name}" for name, error in worst)
    yield "kept float", ", ".join(quantization.kept) or "no layer"


def _report(console: Console, exported: Exported, out: Path, seconds: float) -> None:
    manifest = exported.manifest
    size = sum((out / name).stat().st_size for name in manifest.files)
    figures = ", ".join(f"{name} {value:g}" for name, value in manifest.parity.items())
    console.print(f"[bold]{out}[/bold]")
    for label, text in (
        ("model", f"{manifest.model}, fingerprint {manifest.fingerprint}"),
        ("precision", f"{_precision(manifest)}, split after the {manifest.split}"),
        ("lengths", ", ".join(f"{length:g} s" for length in manifest.lengths) or "any"),
        ("size", f"{size / 1e6:.1f} MB"),
        *exported.notes,
        *_layers(manifest.quantization),
        ("parity", figures),
        ("took", f"{seconds:.0f} s"),
    ):
        console.print(f"  {label:<12} {printable(text)}", markup=False)
