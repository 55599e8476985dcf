"""The list of languages, and the error for unknown codes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


CODES = [
    ("deu", "de ger DEU de-DE de_AT de_DE.UTF-8 de-1996 de-Latn-CH de-x-own German GERMAN Deutsch"),
    ("eng", "en ENG en-GB en_US.utf8 EN eng-US English english"),
    ("cmn", "zh zho chi zh-CN zh-Hans zh-cmn zh-Hans-HK zh_CN.GB18030 cmn-Hans"),
    ("cmn", "Chinese Mandarin 中文 普通话 漢語"),
    ("yue", "zh-HK zh-yue zh-Hant-HK zh_HK zh-MO yue-HK yue-Hant Cantonese 粵語 粤语 廣東話"),
    ("por", "pt pt-BR pt_PT por Portuguese português PORTUGUÊS"),
    ("fas", "fa per pes fa-IR Farsi فارسی"),
    ("nob", "nb no nor nb-NO no_NO@euro Norwegian norsk"),
    ("tgl", "tl fil fil-PH Filipino"),
    ("msa", "ms may zsm ms-MY"),
    ("azj", "az aze az-Latn az-AZ azərbaycanca"),
    ("uzb", "uz uzn oʻzbekcha o‘zbekcha o'zbekcha"),
    ("spa", "es es-419 es-MX español castellano"),
    ("heb", "he iw he-IL"),
    ("ind", "id in"),
    ("tur", "tr Türkçe TÜRKÇE"),
    ("lao", "lo Lao"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "name"), [(code, name) for code, names in CODES for name in names.split()]
)
def test_a_language_is_named_in_many_ways(code: str, name: str) -> None:
    assert language(name).code == code
    assert language(f" {name}\n").code == code


def test_every_name_means_one_language() -> None:
    for code, entry in LANGUAGES.items():
        for name in (code.upper(), entry.name, entry.endonym, entry.endonym.upper(), *entry.others):
            assert language(name) is entry
    others = [name.casefold() for entry in LANGUAGES.values() for name in entry.others]
    assert len(set(others)) == len(others)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nn", "nob"), ("nno", "nob"), ("Nynorsk", "nob"), ("nn-NO", "nob"),
        ("sr", "hrv"), ("Serbian", "hrv"), ("bs_BA", "hrv"), ("zh-nan", "cmn"), ("azb", "azj"),
        ("Germn", "deu"), ("deutch", "deu"), ("Espanol", "spa"), ("Chinesse", "cmn"),
        ("enx", "eng"), ("norwegain", "nob"), ("Brasil", None), ("<|eng|>", None), ("xx-YY", None),
    ],
)  # fmt: skip
def test_an_unknown_name_proposes_the_nearest(name: str, code: str | None) -> None:
    with pytest.raises(LanguageError) as caught:
        language(name)
    if code is None:
        assert caught.value.remedy.startswith("Use one of: ")
    else:
        expected = f"Did you mean {code} ({LANGUAGES[code].name})? Use one of: "
        assert caught.value.remedy.startswith(expected)


def test_the_proposal_is_a_language_of_the_model() -> None:
    with pytest.raises(LanguageError) as caught:
        language("sr", ["eng", "deu"])
    assert caught.value.remedy == "Use one of: eng deu."
    with pytest.raises(LanguageError, match=r"Did you mean deu \(German\)\? Use one of: eng deu\."):
        language("Germn", ["eng", "deu"])


@pytest.mark.parametrize(
    ("name", "script", "code"),
    [
        ("zh-TW", "Hant", "cmn"), ("zh-Hant", "Hant", "cmn"), ("cmn-HK", "Hant", "cmn"),
        ("uz-Cyrl", "Cyrl", "uzb"), ("az_IR", "Arab", "azj"), ("kk-Latn", "Latn", "kaz"),
        ("yue-Hans", "Hans", "yue"), ("hi-Latn", "Latn", "hin"),
    ],
)  # fmt: skip
def test_another_script_is_refused(name: str, script: str, code: str) -> None:
    with pytest.raises(LanguageError) as caught:
        language(name)
    entry = LANGUAGES[code]
    assert f"{entry.name} in the script {script}, but the models write {entry.script}" in (
        caught.value.cause
    )
    assert f"Use {code}" in caught.value.remedy


@pytest.mark.parametrize("code", ["", " ", "xyz", "eng deu", "-", "de-", "und", "*", "e" * 10_000])
def test_unknown_codes_are_refused_with_the_list(code: str) -> None:
    with pytest.raises(LanguageError) as caught:
        language(code)
    assert caught.value.status == 422
    assert caught.value.exit_code == 2
    assert all(known in caught.value.remedy for known in LANGUAGES)
    assert len(caught.value.cause) < 60  # a long invalid code is not repeated in full


@given(st.text() | st.from_regex(r"[a-zA-Z]{2,3}([-_][a-zA-Z0-9]{1,8}){0,4}([.@].*)?"))
def test_any_text_is_a_language_or_refused(text: str) -> None:
    try:
        assert language(text) in LANGUAGES.values()
    except LanguageError as error:
        assert str(error)


@pytest.mark.parametrize(
    "pair", [("eng", "xyz"), ("xyz", "eng"), ("eng", "eng"), ("xyz", "xyz"), ("de", "German")]
)
def test_directions_need_two_known_languages(pair: tuple[str, str]) -> None:
    with pytest.raises(LanguageError):
        direction(*pair)
