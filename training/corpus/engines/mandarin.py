"""Phonemes of Mandarin in the form that Kokoro's Chinese voices read.

espeak-ng writes a syllable in its own letters, with the pitch of the tone as digits. Kokoro's
voices were trained on IPA with one letter for an affricate, and an arrow for the tone.
"""

import re

from training.corpus.engines.phonemes import spell_between_punctuation
from training.corpus.speech import run_espeak

_VOICE = "cmn-latn-pinyin"
_TONES = {"55": "→", "35": "↗", "21": "↓", "214": "↓", "51": "↘"}
# Letters of espeak-ng and of Kokoro, in the order of their replacement.
_LETTERS = (
    ("tS;h", "ʨʰ"),
    ("tS;", "ʨ"),
    ("S;", "ɕ"),
    ("ts.h", "ꭧʰ"),
    ("ts.", "ꭧ"),
    ("tsh", "ʦʰ"),
    ("ts", "ʦ"),
    ("s.", "ʂ"),
    ("z.", "ɻ"),
    ("X", "x"),
    ("h", "ʰ"),
    ("ong", "ʊŋ"),
    ("uei", "wei"),
    ("u@n", "wən"),
    ("iou", "jou"),
    ("iE", "jɛ"),
    ("iA", "ja"),
    ("yE", "ɥe"),
    ("y@n", "ɥɛn"),
    ("y&n", "ɥɛn"),
    ("uN", "ʊŋ"),
    ("uo", "wo"),
    ("ua", "wa"),
    ("i.", "ɨ"),
    ("i[", "ɨ"),
    ("o-", "ɤ"),
    ("@r", "ɚ"),
    ("@", "ə"),
    ("A", "a"),
    ("N", "ŋ"),
)


def mandarin(text: str) -> str:
    """Phonemes of a text in Chinese characters, with its punctuation.

    Raises:
        SpeechError: espeak-ng is not installed, or failed.
    """
    return spell_between_punctuation(text, _spell)


def _spell(part: str) -> str:
    spoken = run_espeak("-q", "-x", "-v", _VOICE, "--", part).decode()
    return "".join(_syllable(one) for one in re.split(r"_\||\s+", spoken))


def _syllable(written: str) -> str:
    tone = "".join(_TONES.get(digits, "") for digits in re.findall(r"\d+", written))
    letters = re.sub(r"[\d',;_]*$|[\d'_]", "", written)
    for old, new in _LETTERS:
        letters = letters.replace(old, new)
    return letters + tone
