"""What the tests of training share: small models, a small corpus of noise, and how to keep it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from esrt.config import CONFIGS, EncoderConfig, QFormerConfig
from training.corpus.build import Corpus, Example
from training.corpus.text import Sentence
from training.recipe import Recipe

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
# As the large models: audio padded to one length, and a fixed number of tokens.
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
    """A recipe of the small model; what is given replaces its settings."""
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
    """Noise of 0.3 to 1.2 s in the place of speech: each sentence once, the languages in turn."""
    random = np.random.default_rng(0)
    examples, start = [], 0
    for number, sentence in enumerate(sentences[:utterances]):
        language = list(sentence.texts)[number % len(sentence.texts)]
        samples = int(random.integers(4800, 19_200))
        examples.append(Example(start, samples, language, "m1", sentence.kind, sentence.texts))
        start += samples
    return Corpus(random.integers(-8000, 8000, start, dtype=np.int16), examples)


def few(corpus: Corpus, count: int) -> Corpus:
    """The corpus's first examples alone."""
    return replace(corpus, examples=corpus.examples[:count])


def keep(corpus: Corpus, folder: Path, name: str) -> None:
    """Write a split as `training.corpus.build.build` does."""
    place = folder / name
    place.mkdir(parents=True)
    lines = [
        {
            "kind": example.kind,
            "texts": example.texts,
            "utterances": [
                {
                    "language": example.language,
                    "variant": example.variant,
                    "speed": 190,
                    "pitch": 50,
                    "start": example.start,
                    "samples": example.samples,
                }
            ],
        }
        for example in corpus.examples
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (place / "index.jsonl").write_text(text, "utf-8")
    np.save(place / "audio.npy", corpus.audio)
