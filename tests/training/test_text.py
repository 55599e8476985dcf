"""Sentences of the corpus: complete in every language, plain text, consistent phrasebooks."""

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
from training.corpus.text import Sentence, phrasebook, sentences

PHRASEBOOK = Path(training.corpus.__path__[0]) / "phrasebook"
MANY = 3000
# Slots that also offer their number alone, for languages whose phrase needs another form.
MEASURED = {"days", "euros", "hours", "minutes", "years"}


@pytest.fixture(scope="module")
def many() -> list[Sentence]:
    return list(itertools.islice(sentences(Random(0)), MANY))


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


def test_every_sentence_is_in_every_language(many: list[Sentence]) -> None:
    for sentence in many:
        assert sentence.texts.keys() == SYNTHESIS_LANGUAGES.keys()
        assert all(sentence.texts.values())


def test_every_kind_occurs(many: list[Sentence]) -> None:
    assert {s.kind for s in many} == {"phrase", "places", "measures", "money", "moment", "date"}


def test_texts_are_plain(many: list[Sentence]) -> None:
    """Slots are filled, spaces are single, characters are visible and composed."""
    for text in (text for sentence in many for text in sentence.texts.values()):
        assert not re.search(r"[{}]", text), text
        assert " ".join(text.split()) == text, text
        assert text.isprintable(), ascii(text)  # false for directional marks
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
    """A number may replace a measure."""
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
def test_entries_of_a_table_are_distinct(code: str) -> None:
    for name, section in phrasebook(code).items():
        assert len(set(section.values())) == len(section), name
