"""The corpus's sentences: distinct, repeatable, and complete in every language."""

import itertools
import re
import tomllib
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from esrt.config import named_config
from training.corpus.text import LOCALES, Sentence, phrasebook, sentences, split

PHRASEBOOK = Path(__file__).parents[2] / "training" / "corpus" / "phrasebook"
MANY = 3000

Splits = dict[str, list[Sentence]]


@pytest.fixture(scope="module")
def many() -> list[Sentence]:
    return list(itertools.islice(sentences(Random(0)), MANY))


def test_splits_have_the_sizes_asked_for(splits: Splits) -> None:
    assert {name: len(part) for name, part in splits.items()} == {
        "test": 60,
        "validation": 20,
        "train": 400,
    }


def test_no_text_occurs_twice_in_any_language(splits: Splits) -> None:
    everything = [sentence for part in splits.values() for sentence in part]
    for code in LOCALES:
        texts = [sentence.texts[code] for sentence in everything]
        assert len(set(texts)) == len(texts), code


def test_splits_follow_the_seed(splits: Splits) -> None:
    held_out = {"test": 60, "validation": 20}
    assert split(3, held_out, 400) == splits
    assert split(4, held_out, 400)["test"] != splits["test"]


def test_more_training_sentences_add_to_those_there_were(splits: Splits) -> None:
    more = split(3, {"test": 60, "validation": 20}, 500)
    assert more["train"][:400] == splits["train"]


def test_fixed_phrases_are_for_training_alone(splits: Splits) -> None:
    fixed = {text for text in phrasebook("eng")["phrases"].values() if "{" not in text}
    assert fixed
    for name in ("test", "validation"):
        assert not fixed & {sentence.texts["eng"] for sentence in splits[name]}


def test_every_sentence_is_in_every_language(many: list[Sentence]) -> None:
    assert set(LOCALES) == set(named_config("esrt-nano").languages)
    for sentence in many:
        assert sentence.texts.keys() == LOCALES.keys()
        assert all(sentence.texts.values())


def test_every_kind_occurs(many: list[Sentence]) -> None:
    assert {s.kind for s in many} == {"phrase", "places", "measures", "money", "date"}


def test_every_slot_is_filled_and_spaces_are_single_and_plain(many: list[Sentence]) -> None:
    for text in (text for sentence in many for text in sentence.texts.values()):
        assert not re.search(r"[{}]", text), text
        assert " ".join(text.split()) == text, text
        assert text.isprintable(), text


def test_numbers_are_the_same_in_every_language(many: list[Sentence]) -> None:
    """A slot that two languages fill differently would teach a wrong translation."""
    for sentence in many:
        if sentence.kind in ("measures", "money"):
            numbers = {tuple(re.findall(r"\d+", text)) for text in sentence.texts.values()}
            assert len(numbers) == 1, sentence.texts


def _keys(data: dict[str, Any]) -> dict[str, list[str]]:
    return {section: sorted(entries) for section, entries in data.items()}


@pytest.mark.parametrize("code", LOCALES)
def test_phrasebooks_have_the_keys_of_the_english_one(code: str) -> None:
    assert _keys(phrasebook(code)) == _keys(phrasebook("eng"))


def test_every_phrasebook_belongs_to_a_language() -> None:
    assert {path.stem for path in PHRASEBOOK.glob("*.toml")} == set(LOCALES)
    for path in PHRASEBOOK.glob("*.toml"):
        assert phrasebook(path.stem) == tomllib.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("code", LOCALES)
def test_phrases_have_the_slots_of_the_english_ones(code: str) -> None:
    for key, text in phrasebook(code)["phrases"].items():
        english = phrasebook("eng")["phrases"][key]
        assert sorted(re.findall(r"{\w+}", text)) == sorted(re.findall(r"{\w+}", english)), key


@pytest.mark.parametrize("code", LOCALES)
def test_phrasebooks_hold_plain_text(code: str) -> None:
    for section in phrasebook(code).values():
        for key, text in section.items():
            assert " ".join(text.split()) == text, key
            assert text, key


def test_held_out_sentences_combine_words_that_training_has(
    splits: Splits,
) -> None:
    def words(sentence: Sentence) -> set[tuple[str, str]]:
        return {
            (code, word)
            for code, text in sentence.texts.items()
            for word in re.findall(r"[^\W\d_]+", text)
        }

    counts = Counter(word for sentence in splits["train"] for word in words(sentence))
    for name in ("test", "validation"):
        for sentence in splits[name]:
            assert min(counts[word] for word in words(sentence)) >= 3, sentence
