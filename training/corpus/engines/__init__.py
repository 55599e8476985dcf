"""Engines that speak the corpus of esrt-mini, one module for each.

Their packages are optional: ``make voices`` installs them.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from esrt.arrays import Float32Array
from esrt.errors import EsrtError

VOICES_REMEDY = "Run: make voices."


class EngineError(EsrtError):
    """An engine is not installed, or cannot speak a text."""


class Engine(Protocol):
    """Speech synthesizer, or recordings."""

    def voices(self, language: str, split: str) -> Sequence[str]:
        """Names of the voices of a language in a split: ``train``, ``validation`` or ``test``.

        No voice of a split is in another one, unless the engine says so. The list is empty if the
        engine does not speak the language, or not in this split.
        """

    def speak(self, text: str, language: str, voice: str) -> Float32Array:
        """Speak a text, mono at 16 kHz, the same for the same arguments.

        Raises:
            EngineError: the engine cannot speak it.
        """


@runtime_checkable
class PairedEngine(Engine, Protocol):
    """Synthesizer of parallel speech, for speaker invariance."""

    def speak_pair(self, text: str, language: str, voice: str) -> tuple[Float32Array, Float32Array]:
        """Speak a text with a voice, and with the reference voice at the same times.

        Returns:
            Two arrays of one shape, (samples,) at 16 kHz.

        Raises:
            EngineError: the engine cannot speak it.
        """


def pace(text: str, voice: str, slowest: float, fastest: float) -> float:
    """Draw a pace for an utterance; it follows from text and voice."""
    number = int.from_bytes(hashlib.sha256(f"{voice} {text}".encode()).digest()[:4], "big")
    return slowest + (fastest - slowest) * number / 2**32


def split_of_number(number: int, total: int) -> str:
    """Split of a numbered voice: the last tenth is for the test, the one before for validation."""
    if number >= 0.9 * total:
        return "test"
    return "validation" if number >= 0.8 * total else "train"


def open_engine(name: str, recordings: Path) -> Engine:
    """Open an engine by its name.

    Args:
        name: a key of `ENGINES`.
        recordings: folder of human recordings, for ``human``.

    Raises:
        EngineError: the engine is not installed, or its files are missing.
    """
    return ENGINES[name](recordings)


def _espeak(recordings: Path) -> Engine:
    from training.corpus.engines.espeak import Espeak

    return Espeak()


def _piper(recordings: Path) -> Engine:
    from training.corpus.engines.piper import Piper

    return Piper()


def _kokoro(recordings: Path) -> Engine:
    from training.corpus.engines.kokoro import Kokoro

    return Kokoro()


def _human(recordings: Path) -> Engine:
    from training.corpus.engines.human import Human

    return Human(recordings)


def _non_speech(recordings: Path) -> Engine:
    from training.corpus.engines.non_speech import NonSpeech

    return NonSpeech()


# Imported when opened: each engine needs libraries of its own.
ENGINES: dict[str, Callable[[Path], Engine]] = {
    "espeak": _espeak,
    "kokoro": _kokoro,
    "piper": _piper,
    "human": _human,
    "non-speech": _non_speech,
}
