"""Languages of the corpus.

A new language needs an entry here, a file in each phrasebook, and a place in a domain
(`training.corpus.domain`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class SynthesisLanguage:
    """A language's CLDR locale and espeak-ng voice."""

    locale: str
    voice: str


SYNTHESIS_LANGUAGES = {
    "eng": SynthesisLanguage("en", "en-us"),
    "deu": SynthesisLanguage("de", "de"),
    "spa": SynthesisLanguage("es", "es"),
    "fra": SynthesisLanguage("fr", "fr"),
    "rus": SynthesisLanguage("ru", "ru"),
    "hin": SynthesisLanguage("hi", "hi"),
    "ara": SynthesisLanguage("ar", "ar"),
    "tur": SynthesisLanguage("tr", "tr"),
    "fin": SynthesisLanguage("fi", "fi"),
    "kor": SynthesisLanguage("ko", "ko"),
    "ind": SynthesisLanguage("id", "id"),
    "cmn": SynthesisLanguage("zh_Hans", "cmn-latn-pinyin"),
    "nld": SynthesisLanguage("nl", "nl"),
}
