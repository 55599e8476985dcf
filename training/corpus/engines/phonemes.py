"""Phonemes of a text by espeak-ng, in IPA, with the punctuation of the text."""

import re
from collections.abc import Iterator

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
    parts = []
    for part, is_punctuation in split_punctuation(text):
        if is_punctuation:
            parts.append(f"{part} ")
            continue
        spoken = run_espeak("-q", "--ipa", "-v", voice, part).decode()
        parts.append(" ".join(_SWITCH.sub("", spoken).split()))
    return "".join(parts).strip()


def split_punctuation(text: str) -> Iterator[tuple[str, bool]]:
    """Parts of a text, and whether each is punctuation, in the marks of the neural voices."""
    for number, part in enumerate(_PUNCTUATION.split(text)):
        if number % 2:
            yield "".join(_MARKS.get(mark, mark) for mark in part), True
        elif part:
            yield part, False
