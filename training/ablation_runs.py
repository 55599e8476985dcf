"""Variants of a recipe without one of its parts: training and scores."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoTokenizer, Gemma3ForCausalLM

from esrt.checkpoint import open_checkpoint
from esrt.features import SAMPLE_RATE
from training.corpus.build import Corpus, load
from training.recipe import Balance, Recipe
from training.scoring import report
from training.training_run import TrainingRun
from training.translation import translate

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


def train_and_score(recipe: Recipe, corpus: Path, folder: Path) -> dict[str, Any]:
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
