"""A small corpus in memory, real sentences with noise in the place of speech; small models."""

from collections.abc import Iterator

import pytest
from transformers import PreTrainedTokenizerFast

from esrt.config import CONFIGS
from tests.training.helpers import PADDED, SMALL, noise_corpus
from training.corpus.build import Corpus
from training.corpus.text import Sentence, split
from training.tokenizer import train_tokenizer


@pytest.fixture(scope="session", autouse=True)
def _small_models() -> Iterator[None]:
    """Models that a recipe can name."""
    with pytest.MonkeyPatch.context() as patch:
        for config in (SMALL, PADDED):
            patch.setitem(CONFIGS, config.name, config)
        yield


@pytest.fixture(scope="session")
def splits() -> dict[str, list[Sentence]]:
    return split(seed=3, held_out={"test": 60, "validation": 20}, train=600)


@pytest.fixture(scope="session")
def tokenizer(splits: dict[str, list[Sentence]]) -> PreTrainedTokenizerFast:
    texts = [text for sentence in splits["train"] for text in sentence.texts.values()]
    return train_tokenizer(texts, 900)


@pytest.fixture(scope="session")
def corpus(splits: dict[str, list[Sentence]]) -> Corpus:
    """36 utterances, three in each language."""
    return noise_corpus(splits["train"], 36)
