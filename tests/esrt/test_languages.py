"""The list of languages, and the error for unknown codes."""

import re

import pytest

from esrt.errors import LanguageError
from esrt.languages import LANGUAGES, direction, language


def test_there_are_45() -> None:
    assert len(LANGUAGES) == 45


@pytest.mark.parametrize("field", ["code", "name", "endonym", "tag"])
def test_names_are_unique(field: str) -> None:
    assert len({getattr(entry, field) for entry in LANGUAGES.values()}) == 45


def test_codes_have_the_form_of_iso_639_3_and_are_in_order() -> None:
    assert all(re.fullmatch("[a-z]{3}", code) for code in LANGUAGES)
    assert list(LANGUAGES) == sorted(LANGUAGES)


def test_codes_are_their_own_keys_and_tags() -> None:
    for code, entry in LANGUAGES.items():
        assert language(code) is entry
        assert entry.code == code
        assert entry.tag == f"<|{code}|>"


def test_every_ordered_pair_is_a_direction() -> None:
    pairs = {
        (source.code, target.code)
        for a in LANGUAGES
        for b in LANGUAGES
        if a != b
        for source, target in [direction(a, b)]
    }
    assert len(pairs) == 45 * 44
    assert ("deu", "yue") in pairs


@pytest.mark.parametrize("code", ["", "en", "ENG", "eng ", "<|eng|>", "xyz", "e" * 10_000])
def test_unknown_codes_are_refused_with_the_list(code: str) -> None:
    with pytest.raises(LanguageError) as caught:
        language(code)
    assert caught.value.status == 422
    assert caught.value.exit_code == 2
    assert all(known in caught.value.remedy for known in LANGUAGES)
    assert len(caught.value.cause) < 60  # a long invalid code is not repeated in full


@pytest.mark.parametrize("pair", [("eng", "xyz"), ("xyz", "eng"), ("eng", "eng"), ("xyz", "xyz")])
def test_directions_need_two_known_languages(pair: tuple[str, str]) -> None:
    with pytest.raises(LanguageError):
        direction(*pair)
