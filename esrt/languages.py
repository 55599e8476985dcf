"""The 45 languages of the ESRT models (arXiv 2605.28642)."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from esrt.errors import LanguageError


@dataclass(frozen=True)
class Language:
    """One language: ISO 639-3 code, English name, native name, and language family."""

    code: str
    name: str
    endonym: str
    family: str

    @property
    def tag(self) -> str:
        """The language's token in prompts and targets, ``<|xxx|>``."""
        return f"<|{self.code}|>"


LANGUAGES: dict[str, Language] = {
    code: Language(code, name, endonym, family)
    for code, name, endonym, family in (
        ("ara", "Arabic", "العربية", "Afro-Asiatic"),
        ("azj", "Azerbaijani", "azərbaycanca", "Turkic"),
        ("ben", "Bengali", "বাংলা", "Indo-European"),
        ("bul", "Bulgarian", "български", "Indo-European"),
        ("cat", "Catalan", "català", "Indo-European"),
        ("ces", "Czech", "čeština", "Indo-European"),
        ("cmn", "Mandarin Chinese", "普通话", "Sino-Tibetan"),
        ("dan", "Danish", "dansk", "Indo-European"),
        ("deu", "German", "Deutsch", "Indo-European"),
        ("ell", "Greek", "Ελληνικά", "Indo-European"),
        ("eng", "English", "English", "Indo-European"),
        ("fas", "Persian", "فارسی", "Indo-European"),
        ("fin", "Finnish", "suomi", "Uralic"),
        ("fra", "French", "français", "Indo-European"),
        ("heb", "Hebrew", "עברית", "Afro-Asiatic"),
        ("hin", "Hindi", "हिन्दी", "Indo-European"),
        ("hrv", "Croatian", "hrvatski", "Indo-European"),
        ("hun", "Hungarian", "magyar", "Uralic"),
        ("ind", "Indonesian", "Bahasa Indonesia", "Austronesian"),
        ("ita", "Italian", "italiano", "Indo-European"),
        ("jpn", "Japanese", "日本語", "Japonic"),
        ("kaz", "Kazakh", "қазақ тілі", "Turkic"),
        ("khm", "Khmer", "ខ្មែរ", "Austroasiatic"),
        ("kor", "Korean", "한국어", "Koreanic"),
        ("lao", "Lao", "ລາວ", "Kra-Dai"),
        ("msa", "Malay", "Bahasa Melayu", "Austronesian"),
        ("mya", "Burmese", "မြန်မာ", "Sino-Tibetan"),
        ("nld", "Dutch", "Nederlands", "Indo-European"),
        ("nob", "Norwegian Bokmål", "norsk bokmål", "Indo-European"),
        ("pol", "Polish", "polski", "Indo-European"),
        ("por", "Portuguese", "português", "Indo-European"),
        ("ron", "Romanian", "română", "Indo-European"),
        ("rus", "Russian", "русский", "Indo-European"),
        ("slk", "Slovak", "slovenčina", "Indo-European"),
        ("slv", "Slovenian", "slovenščina", "Indo-European"),
        ("spa", "Spanish", "español", "Indo-European"),
        ("swe", "Swedish", "svenska", "Indo-European"),
        ("tam", "Tamil", "தமிழ்", "Dravidian"),
        ("tgl", "Tagalog", "Tagalog", "Austronesian"),
        ("tha", "Thai", "ไทย", "Kra-Dai"),
        ("tur", "Turkish", "Türkçe", "Turkic"),
        ("urd", "Urdu", "اردو", "Indo-European"),
        ("uzb", "Uzbek", "oʻzbekcha", "Turkic"),
        ("vie", "Vietnamese", "Tiếng Việt", "Austroasiatic"),
        ("yue", "Cantonese", "粵語", "Sino-Tibetan"),
    )
}


def language(code: str, trained: Collection[str] = LANGUAGES.keys()) -> Language:
    """The language with an ISO 639-3 code.

    Args:
        code: the code.
        trained: codes that the error names, such as those of a model.

    Raises:
        LanguageError: the code is not one of the 45.
    """
    try:
        return LANGUAGES[code]
    except KeyError:
        raise LanguageError(
            f"Unknown language {code[:16]!r}.", f"Use one of: {' '.join(trained)}."
        ) from None


def direction(
    source: str, target: str, trained: Collection[str] = LANGUAGES.keys()
) -> tuple[Language, Language]:
    """The two languages of a translation direction.

    Args:
        source: code of the spoken language.
        target: code of the written language.
        trained: codes that an error names, such as those of a model.

    Raises:
        LanguageError: a code is unknown, or both codes are equal.
    """
    pair = language(source, trained), language(target, trained)
    if source == target:
        raise LanguageError(
            f"Source and target language are both {source!r}.", "Name two different languages."
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
