"""Command line of the export commands, and the report that they print."""

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
from export import parity, quantization_error
from export.backends import get_recipe
from export.checkpoint_source import open_source
from export.progress import progress_listener, report_progress
from export.recipe import Exported, ExportRecipe, export

_ACTIVATIONS_HELP = {
    Activations.DYNAMIC: "dynamic (int8, by the range of each input)",
    Activations.STATIC: "static (int8, by ranges calibrated on speech)",
    Activations.FLOAT: "float (only weights are int8)",
}


_LAST_PART = {Split.QFORMER: "the Q-Former", Split.ADAPTER: "the projector"}


def run(kind: str) -> None:
    """Run the export command of a kind of artifact; does not return."""
    # Exporters print through both; the report holds what matters.
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    recipe = get_recipe(kind)

    def main(
        checkpoint: Annotated[
            str,
            typer.Option(
                help="A folder, of this project or of the released models; a Hugging Face"
                " repository, such as yxdu/ESRT-4B; or random weights, such as random:esrt-4b."
            ),
        ] = str(bundled.CHECKPOINT),
        precision: Annotated[
            Precision,
            typer.Option(
                help="Number format of weights and arithmetic. int8 quantizes the linear layers,"
                " weights per output channel."
            ),
        ] = Precision.INT8,
        split: Annotated[
            Split,
            typer.Option(
                help="Last part that runs on the device: the Q-Former, or the adapter with its"
                " projector."
            ),
        ] = Split.QFORMER,
        seconds: Annotated[
            list[float] | None,
            typer.Option(
                help="Length of speech that the graph takes; may be repeated. A single length fixes"
                " the shape of the input. Default: the lengths that the model was trained for."
            ),
        ] = None,
        activations: Annotated[
            Activations,
            typer.Option(
                help="Quantization of the inputs of int8 linear layers. This format offers"
                f" {', '.join(_ACTIVATIONS_HELP[offered] for offered in recipe.activations)}."
            ),
        ] = recipe.activations[0],
        out: Annotated[
            Path | None,
            typer.Option(
                help=f"Artifact folder; default build/artifacts/MODEL-{recipe.kind}-PRECISION."
            ),
        ] = None,
    ) -> None:
        _export(recipe, checkpoint, precision, split, seconds or [], activations, out)

    main.__doc__ = (
        f"Export encoder and Q-Former (and projector, with --split adapter) to {recipe.title}."
    )
    typer.run(main)


def _export(
    recipe: ExportRecipe,
    checkpoint_name: str,
    precision: Precision,
    split: Split,
    seconds: list[float],
    activations: Activations,
    out: Path | None,
) -> None:
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    with exit_on_error(), _show_progress(console):
        report_progress("reading the checkpoint")
        checkpoint = open_source(checkpoint_name)
        if out is None:
            name = f"{checkpoint.config.name}-{recipe.kind}-{precision}"
            out = Path("build/artifacts") / (f"{name}-adapter" if split is Split.ADAPTER else name)
        exported = export(
            recipe,
            checkpoint,
            out,
            precision,
            split,
            seconds=seconds,
            activations=activations if precision is Precision.INT8 else None,
        )
    _report(console, exported, out, time.monotonic() - started)


@contextmanager
def _show_progress(console: Console) -> Iterator[None]:
    """Show each step and its duration, if the output is a terminal."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        tasks: list[TaskID] = []

        def begin(step: str) -> None:
            for task in tasks:
                progress.update(task, total=1, completed=1)
            tasks.append(progress.add_task(step, total=None))

        with progress_listener(begin):
            yield


def _lengths(manifest: Manifest) -> str:
    lengths = ", ".join(f"{length:g} s" for length in manifest.lengths)
    return lengths or f"any, up to {manifest.front_end.max_seconds:g} s"


def _precision(manifest: Manifest) -> str:
    quantization = manifest.quantization
    if quantization is None:
        return manifest.precision
    return f"{manifest.precision}; inputs of layers: {_ACTIVATIONS_HELP[quantization.activations]}"


def _int8_rows(quantization: Quantization | None) -> Iterator[tuple[str, str]]:
    """Yield the layers with the largest int8 errors, and the layers in floating point."""
    if quantization is None:
        return
    yield from quantization_error.report_rows(quantization.errors)
    yield "float layers", ", ".join(quantization.kept) or "none: every linear layer is int8"


def _report(console: Console, exported: Exported, out: Path, seconds: float) -> None:
    manifest = exported.manifest
    size = sum((out / name).stat().st_size for name in manifest.files)
    console.print(f"[bold]{out}[/bold]")
    for label, text in (
        ("model", f"{manifest.model}, fingerprint {manifest.fingerprint}"),
        ("precision", _precision(manifest)),
        ("split", f"{manifest.split}: the last part on the device is {_LAST_PART[manifest.split]}"),
        ("lengths", _lengths(manifest)),
        ("size", f"{size / 1e6:.1f} MB"),
        *exported.notes,
        *_int8_rows(manifest.quantization),
        ("parity", parity.summarize(manifest.parity)),
        ("duration", f"{seconds:.0f} s"),
    ):
        console.print(f"  {label:<14} {printable(text)}", markup=False)
