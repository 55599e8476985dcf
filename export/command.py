"""The command line that all targets share, and the report that it prints."""

import logging
import time
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from esrt.checkpoint import open_checkpoint
from esrt.command import reported
from esrt.released import is_released, open_released
from export.target import Exported, Precision, Split, Target, export


def run(target: Target) -> None:
    """Export to a target as the command line says; does not return."""

    def main(
        checkpoint: Annotated[
            Path, typer.Option(help="Checkpoint folder, ours or a released one.")
        ] = Path("models/esrt-nano"),
        precision: Annotated[Precision, typer.Option()] = Precision.INT8,
        split: Annotated[Split, typer.Option(help="Where the cloud takes over.")] = Split.QFORMER,
        out: Annotated[
            Path | None,
            typer.Option(
                help=f"Artifact folder; default build/artifacts/MODEL-{target.kind}-PRECISION."
            ),
        ] = None,
    ) -> None:
        _export(target, checkpoint, precision, split, out)

    main.__doc__ = (
        f"Export encoder and Q-Former (and projector, with --split adapter) to {target.title}."
    )
    # The exporters narrate through these; the report says what matters.
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    typer.run(main)


def _export(
    target: Target, checkpoint: Path, precision: Precision, split: Split, out: Path | None
) -> None:
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    with reported():
        released = is_released(checkpoint)
        opened = open_released(checkpoint) if released else open_checkpoint(checkpoint)
        if out is None:
            name = f"{opened.config.name}-{target.kind}-{precision.value}"
            out = Path("build/artifacts") / (f"{name}-adapter" if split is Split.ADAPTER else name)
        with console.status(f"exporting {opened.config.name} to {target.title}, {precision.value}"):
            exported = export(target, opened, out, precision, split.value)
    _report(console, exported, out, time.monotonic() - started)


def _report(console: Console, exported: Exported, out: Path, seconds: float) -> None:
    manifest = exported.manifest
    size = sum((out / name).stat().st_size for name in manifest.files)
    figures = ", ".join(f"{name} {value:g}" for name, value in manifest.parity.items())
    console.print(f"[bold]{out}[/bold]")
    for label, text in (
        ("model", f"{manifest.model}, fingerprint {manifest.fingerprint}"),
        ("precision", f"{manifest.precision}, split after the {manifest.split}"),
        ("size", f"{size / 1e6:.1f} MB"),
        *exported.notes,
        ("parity", figures),
        ("took", f"{seconds:.0f} s"),
    ):
        console.print(f"  {label:<12} {text}", markup=False)
