"""Caches encoder states: ``python -m training.cache SETTINGS --clips FOLDER --out FOLDER``.

The states of a frozen encoder do not change, so each utterance is encoded once, before the
training. Killed runs go on where they were.
"""

from pathlib import Path
from typing import Annotated

import typer

from esrt.cli import VersionOption, run
from training.corpus.clips import CLIPS
from training.corpus.corpus_settings import read_corpus_settings


def main(
    settings: Annotated[
        Path, typer.Argument(metavar="SETTINGS", help="Settings of the corpus, a YAML file.")
    ],
    clips: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the clips.")] = CLIPS,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the states.")] = Path(
        "build/mini/states"
    ),
    version: VersionOption = False,
) -> None:
    """Encode all clips, and measure the statistics of the training states."""
    # Imported here: torch takes seconds, which --help need not.
    from training.state_writer import write_states

    write_states(read_corpus_settings(settings).cache, clips, out)


if __name__ == "__main__":
    run(main)
