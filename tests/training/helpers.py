"""Helpers of the training tests: small models, and a small corpus of noise."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from esrt.config import CONFIGS, EncoderConfig, QFormerConfig
from training.corpus.build import NON_SPEECH, OPEN, Corpus, Example
from training.corpus.text import Sentence
from training.recipe import Recipe
from training.state_corpus import StateCorpus, Statistics

SMALL = replace(
    CONFIGS["esrt-nano"],
    name="esrt-small",
    encoder=EncoderConfig(width=32, layers=1, heads=2, inner_width=64, max_positions=300),
    q_former=QFormerConfig(
        width=24, layers=1, heads=2, inner_width=48, queries=1, stride=4, overlap=4
    ),
    decoder_width=32,
    projector_width=48,
    max_seconds=6.0,
)
# Like the large models: audio padded to one length, and a fixed number of tokens.
PADDED = replace(
    SMALL,
    name="esrt-padded",
    encoder=replace(SMALL.encoder, max_positions=100),
    q_former=QFormerConfig(width=24, layers=1, heads=2, inner_width=48, queries=5),
    padded=True,
    max_seconds=2.0,
)
SPEECH = {"until": 1, "tasks": {"srt": 1}}


def recipe(**changes: Any) -> Recipe:
    """Make a recipe of the small model with some settings changed."""
    settings: dict[str, Any] = {
        "model": SMALL.name,
        "stages": [SPEECH],
        "batch": 4,
        "warmup_steps": 1,
        "vocabulary": 400,
        "seed": 17,
    }
    if "minutes" not in changes:
        settings["steps"] = 1000
    return Recipe.model_validate(settings | changes)


def noise_corpus(sentences: list[Sentence], utterances: int) -> Corpus:
    """Make a corpus with noise of 0.3 to 1.2 s instead of speech; languages rotate."""
    random = np.random.default_rng(0)
    examples, start = [], 0
    for number, sentence in enumerate(sentences[:utterances]):
        language = list(sentence.texts)[number % len(sentence.texts)]
        samples = int(random.integers(4800, 19_200))
        examples.append(Example(start, samples, language, "m1", sentence.kind, sentence.texts))
        start += samples
    return Corpus(random.integers(-8000, 8000, start, dtype=np.int16), examples)


def first_examples(corpus: Corpus, count: int) -> Corpus:
    """Select the first examples of a corpus."""
    return replace(corpus, examples=corpus.examples[:count])


def save_split(corpus: Corpus, folder: Path, name: str) -> None:
    """Write a corpus as the split of that name."""
    place = folder / name
    place.mkdir(parents=True)
    with (place / "index.jsonl").open("w", encoding="utf-8") as index:
        for example in corpus.examples:
            row = asdict(example)
            line = {"kind": row.pop("kind"), "texts": row.pop("texts"), "utterances": [row]}
            index.write(json.dumps(line, ensure_ascii=False) + "\n")
    np.save(place / "audio.npy", corpus.audio)


def state_corpus(sentences: list[Sentence], utterances: int, statistics: Statistics) -> StateCorpus:
    """Make a corpus of states with the given statistics; languages rotate.

    Every seventh example is an open sentence, the next one no speech.
    """
    random = np.random.default_rng(0)
    examples, start = [], 0
    for number, sentence in enumerate(sentences[:utterances]):
        language = list(sentence.texts)[number % len(sentence.texts)]
        positions = 4 * int(random.integers(5, 15))
        kind, texts = sentence.kind, sentence.texts
        if number % 7 == 5:
            kind, texts = OPEN, {language: sentence.texts[language]}
        elif number % 7 == 6:
            kind, texts = NON_SPEECH, {language: ""}
        examples.append(Example(start, positions, language, "m1", kind, texts))
        start += positions
    states = random.standard_normal((start, len(statistics.mean)))
    states = states * statistics.deviation + statistics.mean
    return StateCorpus((states.astype(np.float16),), examples, statistics)
