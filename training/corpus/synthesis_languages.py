"""The languages of the corpus: to add one, an entry here and its file in ``phrasebook/``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Spoken:
    """A language as CLDR and espeak-ng name it."""

    locale: str
    voice: str


SYNTHESIS_LANGUAGES: dict[str, Spoken] = {
    "eng": Spoken("en", "en-us"),
    "deu": Spoken("de", "de"),
    "spa": Spoken("es", "es"),
    "fra": Spoken("fr", "fr"),
    "rus": Spoken("ru", "ru"),
    "hin": Spoken("hi", "hi"),
    "ara": Spoken("ar", "ar"),
    "tur": Spoken("tr", "tr"),
    "fin": Spoken("fi", "fi"),
    "kor": Spoken("ko", "ko"),
    "ind": Spoken("id", "id"),
    "cmn": Spoken("zh_Hans", "cmn-latn-pinyin"),
}
