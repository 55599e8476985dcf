"""The corpus's sentences: held apart, repeatable, and complete in every language."""

import itertools
import re
import unicodedata
from collections import Counter
from pathlib import Path
from random import Random

import pytest

import training.corpus
from esrt.config import named_config
from esrt.languages import LANGUAGES
from training.corpus.synthesis_languages import SYNTHESIS_LANGUAGES
from training.corpus.text import Sentence, phrasebook, sentences, split

PHRASEBOOK = Path(training.corpus.__path__[0]) / "phrasebook"
MANY = 3000
HELD_OUT = {"test": 60, "validation": 20}
# Slots that bring the bare number along, for languages whose phrase needs another form.
MEASURED = {"days", "euros", "hours", "minutes", "years"}

Splits = dict[str, list[Sentence]]


@pytest.fixture(scope="module")
def many() -> list[Sentence]:
    return list(itertools.islice(sentences(Random(0)), MANY))


def words(sentence: Sentence) -> set[tuple[str, str]]:
    return {
        (code, word)
        for code, text in sentence.texts.items()
        for word in re.findall(r"[^\W\d_]+", text)
    }


def test_there_are_twelve_languages_of_many_families() -> None:
    assert len(SYNTHESIS_LANGUAGES) == 12
    assert set(SYNTHESIS_LANGUAGES) == set(named_config("esrt-nano").languages)
    assert len({LANGUAGES[code].family for code in SYNTHESIS_LANGUAGES}) >= 6


def test_there_are_many_scripts(many: list[Sentence]) -> None:
    def script(code: str) -> str:
        letters = Counter(
            unicodedata.name(character).split()[0]
            for sentence in many[:100]
            for character in sentence.texts[code]
            if character.isalpha()
        )
        return letters.most_common(1)[0][0]

    assert {script(code) for code in SYNTHESIS_LANGUAGES} >= {
        "LATIN",
        "CYRILLIC",
        "ARABIC",
        "DEVANAGARI",
        "HANGUL",
        "CJK",
    }


def test_splits_have_the_sizes_asked_for(splits: Splits) -> None:
    assert {name: len(splits[name]) for name in HELD_OUT} == HELD_OUT
    assert len(splits["train"]) > 600


@pytest.mark.parametrize("code", SYNTHESIS_LANGUAGES)
def test_no_held_out_text_occurs_elsewhere_in_any_language(splits: Splits, code: str) -> None:
    counts = Counter(sentence.texts[code] for part in splits.values() for sentence in part)
    for name in HELD_OUT:
        for sentence in splits[name]:
            assert counts[sentence.texts[code]] == 1, sentence


def test_training_meets_most_words_often(splits: Splits) -> None:
    """All but those that few sentences can hold."""
    counts = Counter(word for sentence in splits["train"] for word in words(sentence))
    drawn = Counter(word for sentence in splits["train"][:600] for word in words(sentence))
    rare = [word for word in drawn if drawn[word] < 20]
    assert sum(counts[word] >= 20 for word in rare) > 0.85 * len(rare)


def test_splits_follow_the_seed(splits: Splits) -> None:
    assert split(3, HELD_OUT, 600) == splits
    assert split(4, HELD_OUT, 600)["test"] != splits["test"]


def test_more_training_sentences_add_to_those_there_were(splits: Splits) -> None:
    assert split(3, HELD_OUT, 700)["train"][:600] == splits["train"][:600]


def test_fixed_phrases_are_for_training_alone(splits: Splits) -> None:
    fixed = {text for text in phrasebook("eng")["phrases"].values() if "{" not in text}
    assert fixed
    for name in HELD_OUT:
        assert not fixed & {sentence.texts["eng"] for sentence in splits[name]}


def test_held_out_sentences_combine_words_that_training_has(splits: Splits) -> None:
    """Chinese is written without spaces, and Korean particles cling: there, characters count."""

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


def test_every_sentence_is_in_every_language(many: list[Sentence]) -> None:
    for sentence in many:
        assert sentence.texts.keys() == SYNTHESIS_LANGUAGES.keys()
        assert all(sentence.texts.values())


def test_every_kind_occurs(many: list[Sentence]) -> None:
    assert {s.kind for s in many} == {"phrase", "places", "measures", "money", "moment", "date"}


def test_texts_are_plain(many: list[Sentence]) -> None:
    """Every slot filled, single plain spaces, no marks that are not seen, composed characters."""
    for text in (text for sentence in many for text in sentence.texts.values()):
        assert not re.search(r"[{}]", text), text
        assert " ".join(text.split()) == text, text
        assert text.isprintable(), ascii(text)  # false for marks of direction
        assert unicodedata.is_normalized("NFC", text), ascii(text)


def test_numbers_are_the_same_in_every_language(many: list[Sentence]) -> None:
    """A slot that two languages fill differently would teach a wrong translation."""
    for sentence in many:
        if sentence.kind in ("measures", "money"):
            numbers = {tuple(re.findall(r"\d+", text)) for text in sentence.texts.values()}
            assert len(numbers) == 1, sentence.texts


def test_every_phrasebook_belongs_to_a_language() -> None:
    assert {path.stem for path in PHRASEBOOK.glob("*.toml")} == set(SYNTHESIS_LANGUAGES)


def test_there_are_many_templates() -> None:
    templates = [text for text in phrasebook("eng")["phrases"].values() if "{" in text]
    assert len(templates) >= 60


@pytest.mark.parametrize("code", SYNTHESIS_LANGUAGES)
def test_phrasebooks_have_the_keys_of_the_english_one(code: str) -> None:
    found = {section: set(entries) for section, entries in phrasebook(code).items()}
    assert found == {section: set(entries) for section, entries in phrasebook("eng").items()}


@pytest.mark.parametrize("code", SYNTHESIS_LANGUAGES)
def test_phrases_have_the_slots_of_the_english_ones(code: str) -> None:
    """Or the bare number in the place of a measure."""
    for key, text in phrasebook(code)["phrases"].items():
        slots = sorted(re.findall(r"{(\w+)}", text))
        english = re.findall(r"{(\w+)}", phrasebook("eng")["phrases"][key])
        bare = ["count" if slot in MEASURED else slot for slot in english]
        assert slots in (sorted(english), sorted(bare)), key


@pytest.mark.parametrize("code", SYNTHESIS_LANGUAGES)
def test_phrasebooks_hold_plain_text(code: str) -> None:
    for section in phrasebook(code).values():
        for key, text in section.items():
            assert text, key
            assert " ".join(text.split()) == text, key
            assert unicodedata.is_normalized("NFC", text), key


@pytest.mark.parametrize("code", SYNTHESIS_LANGUAGES)
def test_no_two_entries_of_a_table_say_the_same(code: str) -> None:
    for name, section in phrasebook(code).items():
        assert len(set(section.values())) == len(section), name
