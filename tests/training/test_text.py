"""Sentences of the corpus: complete in every language, plain text, consistent phrasebooks."""

import hashlib
import itertools
import json
import re
import unicodedata
from collections import Counter
from functools import lru_cache
from pathlib import Path
from random import Random

import pytest

import training.corpus
from esrt.config import named_config
from esrt.languages import LANGUAGES
from training.corpus.domain import MINI, NANO, Domain
from training.corpus.synthesis_languages import SYNTHESIS_LANGUAGES
from training.corpus.text import Sentence, phrasebook, sentences

PHRASEBOOK = Path(training.corpus.__path__[0]) / "phrasebook"
MANY = 3000
# Slots that also offer their number alone, for languages whose phrase needs another form.
MEASURED = {"days", "euros", "hours", "minutes", "years"}


DOMAINS = pytest.mark.parametrize("domain", [NANO, MINI], ids=["nano", "mini"])
BOOKS = pytest.mark.parametrize(
    ("code", "books"), [(code, MINI.books) for code in MINI.languages], ids=MINI.languages
)


@lru_cache
def many(domain: Domain) -> list[Sentence]:
    return list(itertools.islice(sentences(domain, Random(0)), MANY))


def test_the_languages_are_those_of_the_models() -> None:
    assert set(NANO.languages) == set(named_config("esrt-nano").languages)
    assert MINI.languages == (*NANO.languages, "nld")
    assert len({LANGUAGES[code].family for code in NANO.languages}) >= 6


def test_the_sentences_of_nano_stay_the_same(splits: dict[str, list[Sentence]]) -> None:
    """The weights, the test vectors and the records of nano belong to these sentences."""
    drawn = [[sentence.kind, sentence.texts] for part in splits.values() for sentence in part]
    digest = hashlib.sha256(json.dumps(drawn, ensure_ascii=False).encode()).hexdigest()
    assert digest.startswith("a0586e157ed3d32c")


def test_there_are_many_scripts() -> None:
    def script(code: str) -> str:
        letters = Counter(
            unicodedata.name(character).split()[0]
            for sentence in many(MINI)[:100]
            for character in sentence.texts[code]
            if character.isalpha()
        )
        return letters.most_common(1)[0][0]

    assert {script(code) for code in MINI.languages} >= {
        "LATIN",
        "CYRILLIC",
        "ARABIC",
        "DEVANAGARI",
        "HANGUL",
        "CJK",
    }


@DOMAINS
def test_every_sentence_is_in_every_language(domain: Domain) -> None:
    for sentence in many(domain):
        assert tuple(sentence.texts) == domain.languages
        assert all(sentence.texts.values())


@DOMAINS
def test_every_kind_occurs(domain: Domain) -> None:
    assert {s.kind for s in many(domain)} == {
        "phrase",
        "places",
        "measures",
        "money",
        "moment",
        "date",
    }


@DOMAINS
def test_texts_are_plain(domain: Domain) -> None:
    """Slots are filled, spaces are single, characters are visible and composed."""
    for text in (text for sentence in many(domain) for text in sentence.texts.values()):
        assert not re.search(r"[{}]", text), text
        assert " ".join(text.split()) == text, text
        assert text.isprintable(), ascii(text)  # false for directional marks
        assert unicodedata.is_normalized("NFC", text), ascii(text)


@DOMAINS
def test_numbers_are_the_same_in_every_language(domain: Domain) -> None:
    """A slot that two languages fill differently would teach a wrong translation."""
    for sentence in many(domain):
        if sentence.kind in ("measures", "money"):
            numbers = {tuple(re.findall(r"\d+", text)) for text in sentence.texts.values()}
            assert len(numbers) == 1, sentence.texts


@pytest.mark.parametrize("book", MINI.books)
def test_every_phrasebook_belongs_to_a_language(book: str) -> None:
    files = (PHRASEBOOK / book).glob("*.toml")
    assert {path.stem for path in files} == set(SYNTHESIS_LANGUAGES)


def test_the_books_have_no_phrase_or_word_in_common() -> None:
    """A later book would replace the entry of an earlier one."""
    books = [phrasebook("eng", (book,)) for book in MINI.books]
    for first, second in itertools.combinations(books, 2):
        for table in first.keys() & second.keys():
            assert not first[table].keys() & second[table].keys(), table


def test_there_are_many_templates() -> None:
    templates = [text for text in phrasebook("eng", NANO.books)["phrases"].values() if "{" in text]
    assert len(templates) >= 60
    assert len(phrasebook("eng", MINI.books)["phrases"]) >= 200


@BOOKS
def test_phrasebooks_have_the_keys_of_the_english_one(code: str, books: tuple[str, ...]) -> None:
    found = {section: set(entries) for section, entries in phrasebook(code, books).items()}
    assert found == {section: set(entries) for section, entries in phrasebook("eng", books).items()}


@BOOKS
def test_phrases_have_the_slots_of_the_english_ones(code: str, books: tuple[str, ...]) -> None:
    """A number may replace a measure."""
    for key, text in phrasebook(code, books)["phrases"].items():
        slots = sorted(re.findall(r"{(\w+)}", text))
        english = re.findall(r"{(\w+)}", phrasebook("eng", books)["phrases"][key])
        bare = ["count" if slot in MEASURED else slot for slot in english]
        assert slots in (sorted(english), sorted(bare)), key


@BOOKS
def test_phrasebooks_hold_plain_text(code: str, books: tuple[str, ...]) -> None:
    for section in phrasebook(code, books).values():
        for key, text in section.items():
            assert text, key
            assert " ".join(text.split()) == text, key
            assert unicodedata.is_normalized("NFC", text), key


@BOOKS
def test_entries_of_a_table_are_distinct(code: str, books: tuple[str, ...]) -> None:
    for name, section in phrasebook(code, books).items():
        assert len(set(section.values())) == len(section), name
