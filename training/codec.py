"""Computes the codec tables of a checkpoint: ``python -m training.codec``."""

from pathlib import Path
from typing import Annotated

import typer

from esrt import bundled
from esrt.cli import VersionOption, run
from esrt.wire import Split
from training.corpus.build import CORPUS, load


def main(
    checkpoint: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Checkpoint folder.", show_default="the bundled esrt-nano"
        ),
    ] = bundled.CHECKPOINT,
    corpus: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the corpus.")] = CORPUS,
    states: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Cached states of the encoder (training.cache), in place of a corpus.",
        ),
    ] = None,
    utterances: Annotated[
        int, typer.Option(min=100, metavar="COUNT", help="Number of training utterances.")
    ] = 2400,
    version: VersionOption = False,
) -> None:
    """Write codec.safetensors into a checkpoint. The checkpoint's features do not change."""
    # Imported here: torch takes seconds, which --help need not.
    from esrt.checkpoint import open_checkpoint
    from training.codec_tables import (
        BLOCK,
        RATE_TARGETS,
        collect_statistics,
        fit_tables,
        write,
    )
    from training.state_corpus import load_states

    opened = open_checkpoint(checkpoint)
    training = (
        load_states(states / "train")
        if states
        else load(corpus, "train").in_languages(opened.config.languages)
    )
    block = BLOCK if opened.config.q_former.stride else 1
    sample = collect_statistics(opened, training, utterances)
    by_codec = {codec: fit_tables(sample, target, block) for codec, target in RATE_TARGETS.items()}
    write(opened, Split.QFORMER, by_codec)
    for codec, tables in by_codec.items():
        payload = sum(len(tables.write(tables.quantize(rows))) for rows in sample.features)
        rate = 8 * payload / sample.seconds
        print(f"{codec}: {len(tables.analysis)} coefficients, {rate:.0f} bit/s without headers")


if __name__ == "__main__":
    run(main)
