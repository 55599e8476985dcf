"""Trains a model by a recipe: ``python -m training.train RECIPE --out DIR``.

A curriculum divides the budget into stages that mix tasks (`training.recipe.Task`). Two auxiliary
CTC losses supervise the encoder and the Q-Former directly: characters on the encoder's states, the
decoder's tokens on the Q-Former's output. The same command resumes a killed run from its last save.
On several devices: ``accelerate launch -m training.train RECIPE --out DIR``.
"""

from pathlib import Path
from typing import Annotated

import typer

from esrt.cli import VersionOption, run
from esrt.cores import MAX_THREADS, usable_cores
from training.corpus.build import CORPUS, load
from training.corpus.corpus_settings import PAIRS
from training.recipe import read_recipe
from training.state_corpus import STATISTICS_FILE, load_states, load_statistics


def main(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="Recipe file, such as training/recipes/nano.yaml."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of the run; resumed if it exists.")
    ],
    corpus: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the corpus.")] = CORPUS,
    threads: Annotated[
        int, typer.Option(metavar="COUNT", min=1, max=MAX_THREADS, help="CPU threads.")
    ] = usable_cores(),
    version: VersionOption = False,
) -> None:
    """Train by a recipe; write OUT/checkpoint."""
    # Imported here: torch takes seconds, which --help need not.
    import torch

    from training.corpus.pairs import load_pairs
    from training.training_run import (
        TrainingRun,
    )

    torch.set_num_threads(threads)
    settings = read_recipe(recipe)
    out.mkdir(parents=True, exist_ok=True)
    if settings.states:
        statistics = load_statistics(settings.states / STATISTICS_FILE)
        names = ["train", PAIRS] if settings.speaker_invariance else ["train"]
        parts = [settings.states / name for name in names]
        run = TrainingRun(settings, load_states(*parts, statistics=statistics), out)
        run.run(load_states(settings.states / "validation", statistics=statistics))
        return
    training = load_pairs(corpus) if settings.speaker_invariance else load(corpus, "train")
    TrainingRun(settings, training, out).run(load(corpus, "validation"))


if __name__ == "__main__":
    run(main)
