"""Splits of the corpus: disjoint, repeatable, and with known words only."""

import re
from collections import Counter

import pytest

from training.corpus import splits as module
from training.corpus.domain import NANO
from training.corpus.splits import draw_splits
from training.corpus.text import Sentence, phrasebook

HELD_OUT = {"test": 60, "validation": 20}

Splits = dict[str, list[Sentence]]


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few extra sentences for rare words."""
    monkeypatch.setattr(module, "_EXTRA_DRAWS", 200)


def words(sentence: Sentence) -> set[tuple[str, str]]:
    return {
        (code, word)
        for code, text in sentence.texts.items()
        for word in re.findall(r"[^\W\d_]+", text)
    }


def test_splits_have_the_given_sizes(splits: Splits) -> None:
    assert {name: len(splits[name]) for name in HELD_OUT} == HELD_OUT
    assert len(splits["train"]) > 600


@pytest.mark.parametrize("code", NANO.languages)
def test_no_held_out_text_occurs_elsewhere_in_any_language(splits: Splits, code: str) -> None:
    counts = Counter(sentence.texts[code] for part in splits.values() for sentence in part)
    for name in HELD_OUT:
        for sentence in splits[name]:
            assert counts[sentence.texts[code]] == 1, sentence


def test_most_words_are_frequent_in_training(splits: Splits) -> None:
    """Only words that fit few sentences stay rare."""
    counts = Counter(word for sentence in splits["train"] for word in words(sentence))
    drawn = Counter(word for sentence in splits["train"][:600] for word in words(sentence))
    rare = [word for word in drawn if drawn[word] < 20]
    assert sum(counts[word] >= 20 for word in rare) > 0.85 * len(rare)


@pytest.mark.usefixtures("few_draws")
def test_splits_follow_the_seed() -> None:
    held_out = {"test": 10, "validation": 5}
    splits = draw_splits(NANO, 3, held_out, 300)
    assert draw_splits(NANO, 3, held_out, 300) == splits
    assert draw_splits(NANO, 4, held_out, 300)["test"] != splits["test"]


@pytest.mark.usefixtures("few_draws")
def test_a_larger_training_split_extends_the_smaller_one(splits: Splits) -> None:
    assert draw_splits(NANO, 3, HELD_OUT, 700)["train"][:600] == splits["train"][:600]


def test_fixed_phrases_are_in_training_only(splits: Splits) -> None:
    fixed = {text for text in phrasebook("eng", NANO.books)["phrases"].values() if "{" not in text}
    assert fixed
    for name in HELD_OUT:
        assert not fixed & {sentence.texts["eng"] for sentence in splits[name]}


def test_held_out_sentences_combine_words_of_training(splits: Splits) -> None:
    """In Chinese (no spaces) and Korean (attached particles), each character is a word."""

    def known(sentence: Sentence) -> set[tuple[str, str]]:
        return {
            (code, part)
            for code, word in words(sentence)
            for part in (word if code in ("cmn", "kor") else [word])
        }

    distinct = {sentence.texts["eng"]: sentence for sentence in splits["train"]}.values()
    counts = Counter(word for sentence in distinct for word in known(sentence))
    for name in HELD_OUT:
        for sentence in splits[name]:
            assert min(counts[word] for word in known(sentence)) >= 3, sentence
