"""Ablation of curriculum and balancing: ``python -m training.ablation --json FILE``.

Each variant of the recipe trains on short utterances of a few languages with unequal amounts of
data, with the same number of steps and the same seed. The same command resumes killed runs.
"""

import os
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, Gemma3ForCausalLM

from esrt.benchmark_report import BenchmarkReport
from esrt.checkpoint import open_checkpoint
from esrt.cli import exit_on_error
from esrt.features import SAMPLE_RATE
from training.corpus.build import CORPUS, Corpus, load
from training.evaluate import translate
from training.recipe import Balance, Recipe, read_recipe
from training.scoring import report
from training.train import TrainingRun

# Share of the training utterances that each language keeps.
SHARES = {"eng": 1.0, "spa": 0.5, "tur": 0.25, "ind": 0.125}
_MAX_SAMPLES = round(2.2 * SAMPLE_RATE)


def variants(full: Recipe) -> dict[str, Recipe]:
    """Make the full recipe, and the recipe without one of its parts."""
    return {
        "full": full,
        "without curriculum": full.model_copy(update={"stages": full.stages[-1:]}),
        "without balancing": full.model_copy(update={"balance": Balance()}),
    }


def subsample(corpus: Corpus, shares: dict[str, float], seed: int) -> Corpus:
    """Select short utterances: of each language the given share."""
    random, kept = Random(seed), []
    short = [e for e in corpus.in_languages(shares).examples if e.samples <= _MAX_SAMPLES]
    for code, share in shares.items():
        in_language = [example for example in short if example.language == code]
        kept += random.sample(in_language, round(share * len(in_language)))
    return replace(corpus, examples=kept)


def run(recipe: Recipe, corpus: Path, folder: Path) -> dict[str, Any]:
    """Train one variant and score it on the test split."""
    all_short = dict.fromkeys(SHARES, 1.0)
    training = subsample(load(corpus, "train"), SHARES, recipe.seed)
    folder.mkdir(parents=True, exist_ok=True)
    training_run = TrainingRun(recipe, training, folder)
    if training_run.progress < 1:
        training_run.run(subsample(load(corpus, "validation"), all_short, recipe.seed))
    checkpoint = open_checkpoint(folder / "checkpoint")
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    held_out = subsample(load(corpus, "test"), all_short, recipe.seed)
    scores = report(translate(checkpoint.edge_model(), decoder, tokenizer, held_out), set())
    sources = {row["src"]: row["exact"] for row in scores["sources"]}
    return {
        **scores["overall"],
        "exact_by_source": {code: sources[code] for code in SHARES},
        "utterances": {
            code: sum(example.language == code for example in training.examples) for code in SHARES
        },
    }


def main(
    json_file: Annotated[Path, typer.Option("--json", help="Write the scores to this file.")],
    recipe: Annotated[Path, typer.Option(help="The full recipe.")] = Path(
        "training/recipes/ablation.yaml"
    ),
    corpus: Annotated[Path, typer.Option(help="Folder of the corpus.")] = CORPUS,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("build/ablation"),
    threads: Annotated[int, typer.Option(help="CPU threads.")] = os.cpu_count() or 1,
) -> None:
    """Train and score every variant; print and write the scores."""
    torch.set_num_threads(threads)
    full = read_recipe(recipe)
    rows = [
        {"variant": name, **run(variant, corpus, out / name.replace(" ", "-"))}
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
    with exit_on_error():
        typer.run(main)
