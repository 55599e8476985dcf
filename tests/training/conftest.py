"""Fixtures: small models, and a small corpus in memory with noise instead of speech."""

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from esrt.config import CONFIGS
from tests.training.helpers import PADDED, SMALL, noise_corpus
from training.corpus.build import Corpus
from training.corpus.domain import NANO
from training.corpus.splits import draw_splits
from training.corpus.text import Sentence
from training.tokenizer import train_tokenizer


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small run faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package", autouse=True)
def _small_models() -> Iterator[None]:
    """Register the small models, so that recipes can name them."""
    with pytest.MonkeyPatch.context() as patch:
        for config in (SMALL, PADDED):
            patch.setitem(CONFIGS, config.name, config)
        yield


@pytest.fixture(scope="session")
def splits() -> dict[str, list[Sentence]]:
    return draw_splits(NANO, seed=3, held_out={"test": 60, "validation": 20}, train=600)


@pytest.fixture(scope="session")
def tokenizer(splits: dict[str, list[Sentence]]) -> PreTrainedTokenizerFast:
    texts = [text for sentence in splits["train"] for text in sentence.texts.values()]
    return train_tokenizer(texts, 900)


@pytest.fixture(scope="session")
def corpus(splits: dict[str, list[Sentence]]) -> Corpus:
    """Make 36 utterances, three in each language."""
    return noise_corpus(splits["train"], 36)
