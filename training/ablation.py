"""Ablation of curriculum and balancing: ``python -m training.ablation --json FILE``.

Each variant of the recipe trains on short utterances of a few languages with unequal amounts of
data, with the same number of steps and the same seed. The same command resumes killed runs.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from esrt.benchmark_report import BenchmarkReport
from esrt.cli import VersionOption, run
from esrt.cores import MAX_THREADS, usable_cores
from esrt.files import refuse_input
from training.corpus.build import CORPUS
from training.recipe import read_recipe


def main(
    json_file: Annotated[
        Path, typer.Option("--json", metavar="FILE", help="Write the scores to this file.")
    ],
    recipe: Annotated[Path, typer.Option(metavar="FILE", help="The full recipe.")] = Path(
        "training/recipes/ablation.yaml"
    ),
    corpus: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the corpus.")] = CORPUS,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the runs.")] = Path(
        "build/ablation"
    ),
    threads: Annotated[
        int, typer.Option(metavar="COUNT", min=1, max=MAX_THREADS, help="CPU threads.")
    ] = usable_cores(),
    version: VersionOption = False,
) -> None:
    """Train and score every variant; print and write the scores."""
    refuse_input(json_file, recipe)
    # Imported here: torch takes seconds, which --help need not.
    import torch

    from training.ablation_runs import (
        SHARES,
        train_and_score,
        variants,
    )

    torch.set_num_threads(threads)
    full = read_recipe(recipe)
    rows = [
        {"variant": name, **train_and_score(variant, corpus, out / name.replace(" ", "-"))}
        for name, variant in variants(full).items()
    ]
    table = Table("variant", "exact %", "chrF", "transcript exact %", *SHARES)
    for row in rows:
        scores = [row["exact"], row["chrf"], row["transcript_exact"]]
        table.add_row(row["variant"], *map(str, [*scores, *row["exact_by_source"].values()]))
    Console().print(table)
    settings = {"recipe": full.model_dump(mode="json", exclude_defaults=True), "shares": SHARES}
    BenchmarkReport(settings, rows, bars=[], tools=("torch", "transformers", "sacrebleu")).write(
        json_file
    )


if __name__ == "__main__":
    run(main)
