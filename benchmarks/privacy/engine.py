"""Synthesizers of the speakers, apart from what they import."""

from enum import StrEnum


class Engine(StrEnum):
    """Synthesizers of the speakers."""

    ESPEAK = "espeak"
    KOKORO = "kokoro"
