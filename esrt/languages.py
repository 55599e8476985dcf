"""The 45 languages of the ESRT models (arXiv 2605.28642), and the ways to name them."""

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from esrt.errors import LanguageError


@dataclass(frozen=True)
class Language:
    """One language.

    Attributes:
        code: ISO 639-3 code.
        name: English name.
        endonym: native name.
        family: language family.
        script: ISO 15924 code of the script that the models write.
        others: other codes (ISO 639-1, ISO 639-2, macrolanguages) and names.
    """

    code: str
    name: str
    endonym: str
    family: str
    script: str
    others: tuple[str, ...]

    @property
    def tag(self) -> str:
        """The language's token in prompts and targets, ``<|xxx|>``."""
        return f"<|{self.code}|>"


LANGUAGES: dict[str, Language] = {
    code: Language(code, name, endonym, family, script, tuple(others.split(", ")))
    for code, name, endonym, family, script, others in (
        ("ara", "Arabic", "العربية", "Afro-Asiatic", "Arab", "ar, arb"),
        ("azj", "Azerbaijani", "azərbaycanca", "Turkic", "Latn", "az, aze, Azeri"),
        ("ben", "Bengali", "বাংলা", "Indo-European", "Beng", "bn, Bangla"),
        ("bul", "Bulgarian", "български", "Indo-European", "Cyrl", "bg"),
        ("cat", "Catalan", "català", "Indo-European", "Latn", "ca, Valencian"),
        ("ces", "Czech", "čeština", "Indo-European", "Latn", "cs, cze"),
        (
            "cmn",
            "Mandarin Chinese",
            "普通话",
            "Sino-Tibetan",
            "Hans",
            "zh, zho, chi, Chinese, Mandarin, 中文, 汉语, 漢語, 國語, 国语, 普通話",
        ),
        ("dan", "Danish", "dansk", "Indo-European", "Latn", "da"),
        ("deu", "German", "Deutsch", "Indo-European", "Latn", "de, ger"),
        ("ell", "Greek", "Ελληνικά", "Indo-European", "Grek", "el, gre"),
        ("eng", "English", "English", "Indo-European", "Latn", "en"),
        ("fas", "Persian", "فارسی", "Indo-European", "Arab", "fa, per, pes, Farsi"),
        ("fin", "Finnish", "suomi", "Uralic", "Latn", "fi"),
        ("fra", "French", "français", "Indo-European", "Latn", "fr, fre"),
        ("heb", "Hebrew", "עברית", "Afro-Asiatic", "Hebr", "he, iw"),
        ("hin", "Hindi", "हिन्दी", "Indo-European", "Deva", "hi"),
        ("hrv", "Croatian", "hrvatski", "Indo-European", "Latn", "hr"),
        ("hun", "Hungarian", "magyar", "Uralic", "Latn", "hu"),
        ("ind", "Indonesian", "Bahasa Indonesia", "Austronesian", "Latn", "id, in, Indonesia"),
        ("ita", "Italian", "italiano", "Indo-European", "Latn", "it"),
        ("jpn", "Japanese", "日本語", "Japonic", "Jpan", "ja"),
        ("kaz", "Kazakh", "қазақ тілі", "Turkic", "Cyrl", "kk, қазақша"),
        ("khm", "Khmer", "ខ្មែរ", "Austroasiatic", "Khmr", "km, Cambodian"),
        ("kor", "Korean", "한국어", "Koreanic", "Kore", "ko, 조선말"),
        ("lao", "Lao", "ລາວ", "Kra-Dai", "Laoo", "lo, Laotian"),
        ("msa", "Malay", "Bahasa Melayu", "Austronesian", "Latn", "ms, may, zsm, Melayu"),
        ("mya", "Burmese", "မြန်မာ", "Sino-Tibetan", "Mymr", "my, bur, Myanmar"),
        ("nld", "Dutch", "Nederlands", "Indo-European", "Latn", "nl, dut, Flemish"),
        (
            "nob",
            "Norwegian Bokmål",
            "norsk bokmål",
            "Indo-European",
            "Latn",
            "nb, no, nor, Norwegian, norsk, Bokmål",
        ),
        ("pol", "Polish", "polski", "Indo-European", "Latn", "pl"),
        ("por", "Portuguese", "português", "Indo-European", "Latn", "pt"),
        ("ron", "Romanian", "română", "Indo-European", "Latn", "ro, rum, mo, mol, Moldovan"),
        ("rus", "Russian", "русский", "Indo-European", "Cyrl", "ru"),
        ("slk", "Slovak", "slovenčina", "Indo-European", "Latn", "sk, slo"),
        ("slv", "Slovenian", "slovenščina", "Indo-European", "Latn", "sl, Slovene"),
        ("spa", "Spanish", "español", "Indo-European", "Latn", "es, Castilian, castellano"),
        ("swe", "Swedish", "svenska", "Indo-European", "Latn", "sv"),
        ("tam", "Tamil", "தமிழ்", "Dravidian", "Taml", "ta"),
        ("tgl", "Tagalog", "Tagalog", "Austronesian", "Latn", "tl, fil, Filipino, Pilipino"),
        ("tha", "Thai", "ไทย", "Kra-Dai", "Thai", "th, ภาษาไทย"),
        ("tur", "Turkish", "Türkçe", "Turkic", "Latn", "tr"),
        ("urd", "Urdu", "اردو", "Indo-European", "Arab", "ur"),
        ("uzb", "Uzbek", "oʻzbekcha", "Turkic", "Latn", "uz, uzn"),
        ("vie", "Vietnamese", "Tiếng Việt", "Austroasiatic", "Latn", "vi"),
        ("yue", "Cantonese", "粵語", "Sino-Tibetan", "Hant", "粤语, 廣東話, 广东话"),
    )
}


# Languages outside of the 45 whose code or name resembles none of theirs, with the nearest one.
_NEAREST = {
    other: code
    for code, others in {
        "ara": "acm, aeb, afb, apc, apd, arq, ars, ary, arz",
        "azj": "azb",
        "cmn": "cdo, gan, hak, hsn, nan, wuu, Taiwanese, Hokkien",
        "deu": "bar, gsw, lb, ltz, nds, Luxembourgish, Schwyzerdütsch",
        "fas": "prs, Dari",
        "hrv": "bs, bos, cnr, hbs, sh, sr, srp, Bosnian, Montenegrin, Serbian, bosanski, srpski",
        "nld": "af, afr, fy, fry, Afrikaans",
        "nob": "nn, nno, Norwegian Nynorsk, Nynorsk, norsk nynorsk",
        "por": "gl, glg, Galician, galego",
    }.items()
    for other in others.casefold().split(", ")
}  # fmt: skip
# Regions where a language is usually written in another script than the models write.
_REGIONAL_SCRIPTS = {
    ("azj", "ir"): "Arab",
    ("cmn", "hk"): "Hant",
    ("cmn", "mo"): "Hant",
    ("cmn", "tw"): "Hant",
    ("kaz", "cn"): "Arab",
    ("uzb", "af"): "Arab",
}
# A language tag (BCP 47): language, extended language, script, region; variants and extensions.
_TAG = re.compile(
    r"([a-z]{2,3})(?:-([a-z]{3}))?(?:-([a-z]{4}))?(?:-([a-z]{2}|[0-9]{3}))?(?:-[a-z0-9]{1,8})*"
)
_LONGEST_NAME = 64


def _fold(name: str) -> str:
    """A name without differences in case, spaces, apostrophes and compatible characters."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return re.sub("[‘’ʻʼ`]", "'", " ".join(folded.split()))


_KNOWN = {
    _fold(name): one
    for one in LANGUAGES.values()
    for name in (one.code, one.name, one.endonym, *one.others)
}


def language(name: str, trained: Collection[str] = LANGUAGES.keys()) -> Language:
    """The language with a code, a tag or a name: ``deu``, ``de-AT``, ``German``, ``Deutsch``.

    Args:
        name: an ISO 639 code, a language tag (BCP 47) or locale, or the English or native name.
        trained: codes that an error names, such as those of a model.

    Raises:
        LanguageError: the name is that of no language or several of the 45, or names another script
            than the models write.
    """
    if name in LANGUAGES:
        return LANGUAGES[name]
    folded = _fold(name[: _LONGEST_NAME + 1])
    if len(folded) <= _LONGEST_NAME:
        found = _KNOWN.get(folded) or _from_tag(folded)
        if found is not None:
            return found
    nearest = LANGUAGES.get(_nearest(folded, trained))
    question = f"Did you mean {nearest.code} ({nearest.name})? " if nearest else ""
    raise LanguageError(
        f"Unknown language {name[:16]!r}.", f"{question}Use one of: {' '.join(trained)}."
    )


def _from_tag(name: str) -> Language | None:
    """The language of a folded tag or locale; ``None`` if it is not one of the 45.

    Raises:
        LanguageError: the tag's script is not the one that the models write.
    """
    tag = re.sub("[.@].*", "", name).replace("_", "-")  # without a locale's encoding and modifier
    match = _TAG.fullmatch(tag)
    if match is None:
        return None
    primary, extended, script, region = match.groups()
    found = _KNOWN.get(extended or primary)
    if found is None:
        return None
    if found.code == "cmn" and "cmn" not in (primary, extended) and region in ("hk", "mo"):
        # Chinese is spoken as Cantonese there, except where the tag has Mandarin's script.
        found = found if script == "hans" else LANGUAGES["yue"]
    script = script or _REGIONAL_SCRIPTS.get((found.code, region or ""), found.script)
    if script.casefold() != found.script.casefold():
        raise LanguageError(
            f"{tag[:16]!r} is {found.name} in the script {script.capitalize()}, but the models"
            f" write {found.script}.",
            f"Use {found.code} for {found.script}.",
        )
    return found


def _nearest(folded: str, trained: Collection[str]) -> str:
    """The code of the trained language whose code or name is most similar; empty for none."""
    # A tag begins with its language, or with a macrolanguage and the language: zh-nan.
    first, *others = re.split("[-_]", folded)
    parts = [folded, first, *(part for part in others[:1] if len(part) == 3)]
    related = next((_NEAREST[part] for part in parts if part in _NEAREST), None)
    if related is not None:
        return related if related in trained else ""
    names = [name for name, one in _KNOWN.items() if one.code in trained]
    # Of three letters, two may be right.
    similar = difflib.get_close_matches(folded, names, 1, cutoff=0.66 if len(folded) < 4 else 0.75)
    return _KNOWN[similar[0]].code if similar else ""


def direction(
    source: str, target: str, trained: Collection[str] = LANGUAGES.keys()
) -> tuple[Language, Language]:
    """The two languages of a translation direction.

    Args:
        source: the spoken language, as for `language`.
        target: the written language.
        trained: codes that an error names, such as those of a model.

    Raises:
        LanguageError: a language is unknown, or both are the same.
    """
    pair = language(source, trained), language(target, trained)
    if pair[0] is pair[1]:
        raise LanguageError(
            f"Source and target language are both {pair[0].code!r}.",
            "Name two different languages.",
        )
    return pair


def check_trained(model: str, trained: Collection[str], wanted: Iterable[Language]) -> None:
    """Check that a model was trained for some languages.

    Args:
        model: name of the model, for the message.
        trained: ISO 639-3 codes of the model's languages.
        wanted: the languages to check.

    Raises:
        LanguageError: the model was not trained for one of the languages.
    """
    for item in wanted:
        if item.code not in trained:
            raise LanguageError(
                f"{model} was not trained for {item.name} ({item.code}).",
                f"Use one of: {' '.join(trained)}.",
            )
