"""A small corpus in memory: real sentences, and noise in the place of speech."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from training.corpus.build import Corpus, Example
from training.corpus.text import Sentence, split
from training.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def splits() -> dict[str, list[Sentence]]:
    return split(seed=3, held_out={"test": 60, "validation": 20}, train=400)


@pytest.fixture(scope="session")
def tokenizer(splits: dict[str, list[Sentence]]) -> PreTrainedTokenizerFast:
    texts = [text for sentence in splits["train"] for text in sentence.texts.values()]
    return train_tokenizer(texts, 600)


@pytest.fixture(scope="session")
def corpus(splits: dict[str, list[Sentence]]) -> Corpus:
    """24 utterances of 1.6 to 4.7 s, in turn in every language."""
    random = np.random.default_rng(0)
    examples, start = [], 0
    for number, sentence in enumerate(splits["train"][:24]):
        language = list(sentence.texts)[number % len(sentence.texts)]
        frames = 8 * int(random.integers(20, 60))
        examples.append(Example(start, frames, language, sentence.kind, sentence.texts))
        start += frames
    return Corpus(random.standard_normal((start, 128)).astype(np.float16), examples)
