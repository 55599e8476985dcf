"""Command line options that all benchmarks share."""

from pathlib import Path
from typing import Annotated

import typer


def _existing_folder(file: Path) -> Path:
    """Check the folder before the measurement starts, not when its result is to be written."""
    if not file.parent.is_dir():
        raise typer.BadParameter(f"The folder {file.parent} does not exist. Create it first.")
    return file


JsonOption = Annotated[
    Path, typer.Option("--json", callback=_existing_folder, help="File for the figures.")
]
ReportOption = Annotated[Path | None, typer.Option(help="Folder for the plot, a PNG.")]
CheckpointOption = Annotated[
    Path, typer.Option(help="Checkpoint folder.", show_default="the bundled esrt-nano")
]
