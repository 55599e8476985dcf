"""Command line of the export commands, and the report that they print."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from esrt import bundled
from esrt.cli import VersionOption
from esrt.cores import usable_cores
from esrt.errors import printable
from esrt.manifest import Activations, Manifest, Precision, Quantization
from esrt.wire import Split
from export.progress import progress_listener, report_progress

if TYPE_CHECKING:
    from export.recipe import Exported

_ACTIVATIONS_HELP = {
    Activations.DYNAMIC: "dynamic (int8, by the range of each input)",
    Activations.STATIC: "static (int8, by ranges calibrated on speech)",
    Activations.FLOAT: "float (only weights are int8)",
}
_LAST_PART = {Split.QFORMER: "the Q-Former", Split.ADAPTER: "the projector"}


def export_command(kind: str) -> Callable[..., None]:
    """Make the export command of a kind of artifact; its parameters are the options."""

    def command(
        checkpoint: Annotated[
            str | None,
            typer.Option(
                metavar="CHECKPOINT",
                help="A folder, of this project or of the released models; a Hugging Face"
                " repository, such as yxdu/ESRT-4B; or random weights, such as random:esrt-4b.",
                show_default="the bundled esrt-nano",
            ),
        ] = None,
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
                metavar="SECONDS",
                help="Length of speech that the graph takes; may be repeated. A single length fixes"
                " the shape of the input.",
                show_default="the lengths that the model was trained for",
            ),
        ] = None,
        activations: Annotated[
            Activations | None,
            typer.Option(
                help="Quantization of the inputs of int8 linear layers: dynamic, by the range of"
                " each input (ONNX, ExecuTorch); static, by ranges calibrated on speech; float,"
                " none, only weights are int8 (Core ML).",
                show_default="dynamic; float for Core ML",
            ),
        ] = None,
        out: Annotated[
            Path | None,
            typer.Option(
                metavar="FOLDER",
                help="Folder for the artifact.",
                show_default=f"build/artifacts/MODEL-{kind}-PRECISION",
            ),
        ] = None,
        version: VersionOption = False,
    ) -> None:
        _export(kind, checkpoint, precision, split, seconds or [], activations, out)

    command.__doc__ = (
        f"Export encoder and Q-Former as kind {kind}.\n\n"
        "With --split adapter, the artifact includes the projector. The model is compared with"
        " torch's; if a check fails, nothing is written."
    )
    return command


def prepare_libraries(kind: str) -> None:
    """Silence the libraries that exporters import, and give them the cores of this process.

    The report holds what matters. The libraries read the environment when they are imported.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if kind == "coreml":
        # coremltools draws a progress bar for each of its passes.
        os.environ["TQDM_DISABLE"] = "1"


def _export(
    kind: str,
    checkpoint_name: str | None,
    precision: Precision,
    split: Split,
    seconds: list[float],
    activations: Activations | None,
    out: Path | None,
) -> None:
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    prepare_libraries(kind)
    with _show_progress(console):
        report_progress("reading the checkpoint")
        # Imported here: torch takes seconds, which --help need not.
        from export.backends import get_recipe
        from export.checkpoint_source import open_bundled, open_source
        from export.recipe import export

        checkpoint = open_bundled() if checkpoint_name is None else open_source(checkpoint_name)
        if out is None:
            name = f"{checkpoint.config.name}-{kind}-{precision}"
            out = bundled.ARTIFACTS / (f"{name}-adapter" if split is Split.ADAPTER else name)
        exported = export(
            get_recipe(kind),
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
    # Imported here: it imports torch.
    from export.quantization_error import report_rows

    yield from report_rows(quantization.errors)
    yield "float layers", ", ".join(quantization.kept) or "none: every linear layer is int8"


def _report(console: Console, exported: "Exported", out: Path, seconds: float) -> None:
    # Imported here: it imports torch.
    from export.parity import summarize

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
        ("parity", summarize(manifest.parity)),
        ("duration", f"{seconds:.0f} s"),
    ):
        console.print(f"  {label:<14} {printable(text)}", markup=False)
