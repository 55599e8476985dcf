"""Command line options and the codec that benchmarks share."""

from pathlib import Path
from typing import Annotated

import typer

from esrt.cores import MAX_THREADS
from esrt.errors import EsrtError
from esrt.wire import Codec

# The codec that the edge runtime takes for a model with codec tables.
DEFAULT_CODEC = Codec.KLT


def in_existing_folder(file: Path) -> Path:
    """Check before the measurement, not after it, that the file can be written.

    Raises:
        EsrtError: the folder does not exist.
    """
    if not file.parent.is_dir():
        raise EsrtError(f"The folder {file.parent} does not exist.", "Create it first.")
    return file


JsonOption = Annotated[
    Path,
    typer.Option(
        "--json", metavar="FILE", callback=in_existing_folder, help="File for the figures."
    ),
]
ReportOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder for the plot, a PNG.")
]
CheckpointOption = Annotated[
    Path,
    typer.Option(metavar="FOLDER", help="Checkpoint folder.", show_default="the bundled esrt-nano"),
]
ClipsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Clips of a corpus of many voices (training.corpus clips), in place of esrt-nano's"
        " corpus.",
    ),
]
RoundsOption = Annotated[
    int, typer.Option(metavar="COUNT", min=1, help="Rounds of the measurement.")
]
ThreadsOption = Annotated[
    int, typer.Option(metavar="COUNT", min=1, max=MAX_THREADS, help="Threads of each backend.")
]
