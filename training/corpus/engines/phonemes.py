"""Phonemes of a text by espeak-ng, in IPA, with the punctuation of the text."""

import re
from collections.abc import Callable

from training.corpus.speech import run_espeak

_PUNCTUATION = re.compile(r"\s*([.,!?;:¡¿—…،؟。，、！？；：।]+)\s*")
# Marks of these neural voices' vocabularies.
_MARKS = dict(zip("،؟。，、！？；：।", ",?.,,!?;:.", strict=True))
# espeak-ng marks a switch to another language, such as (en).
_SWITCH = re.compile(r"\([a-z-]+\)")


def phonemes(text: str, voice: str) -> str:
    """Phonemes of a text.

    Args:
        text: the text.
        voice: espeak-ng's voice, such as ``en-us``.

    Raises:
        SpeechError: espeak-ng is not installed, or failed.
    """

    def spell(part: str) -> str:
        spoken = run_espeak("-q", "--ipa", "-v", voice, "--", part).decode()
        return " ".join(_SWITCH.sub("", spoken).split())

    return spell_between_punctuation(text, spell)


def spell_between_punctuation(text: str, spell: Callable[[str], str]) -> str:
    """Phonemes of the parts of a text, and its punctuation in the marks of the neural voices."""
    parts = []
    for number, part in enumerate(_PUNCTUATION.split(text)):
        if number % 2:
            parts.append("".join(_MARKS.get(mark, mark) for mark in part) + " ")
        elif part:
            parts.append(spell(part))
    return "".join(parts).strip()
