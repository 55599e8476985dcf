"""Prompt and target text of the decoder.

The decoder reads ``[features]<|src|><|tgt|>`` and writes ``transcript<|src|><|tgt|>translation``.
The separator in the target equals the prompt (arXiv 2605.28642).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from esrt.languages import Language


@dataclass(frozen=True)
class TextDelta:
    """A piece of output text, and the part of the answer to which the text belongs."""

    part: Literal["transcript", "translation"]
    text: str


def separator(source: Language, target: Language) -> str:
    """The two language tags, which are both the prompt and the separator in the target."""
    return source.tag + target.tag


def target_text(transcript: str, translation: str, source: Language, target: Language) -> str:
    """The decoder's target text, without the end-of-sequence token."""
    return f"{transcript}{separator(source, target)}{translation}"


def split_target(text: str, source: Language, target: Language) -> tuple[str, str]:
    """Transcript and translation of a whole answer; without a separator, no translation."""
    splitter = TargetSplitter(source, target)
    for _ in (*splitter.feed(text), *splitter.finish()):
        pass
    return splitter.transcript, splitter.translation


class TargetSplitter:
    """Splits the decoder's text into transcript and translation while it arrives in pieces.

    Text that could be the beginning of the separator is held back until more text arrives, so a
    reader never sees a part of a tag.
    """

    def __init__(self, source: Language, target: Language) -> None:
        self._separator = separator(source, target)
        self._pending = ""
        self.separated = False
        self.transcript = ""
        self.translation = ""

    def feed(self, text: str) -> Iterator[TextDelta]:
        """Add a piece of decoded text with its special tokens; yield the text that is final."""
        if self.separated:
            yield from self._emit(text)
            return
        self._pending += text
        transcript, separator, rest = self._pending.partition(self._separator)
        if separator:
            yield from self._emit(transcript)
            self.separated, self._pending = True, ""
            yield from self._emit(rest)
            return
        final = self._pending[: len(self._pending) - self._held_back()]
        self._pending = self._pending[len(final) :]
        yield from self._emit(final)

    def finish(self) -> Iterator[TextDelta]:
        """Yield the text that was held back, after the decoder has ended."""
        pending, self._pending = self._pending, ""
        yield from self._emit(pending)

    def _held_back(self) -> int:
        """Length of the longest suffix of the pending text that is a prefix of the separator."""
        longest = min(len(self._pending), len(self._separator) - 1)
        return next(
            (n for n in range(longest, 0, -1) if self._separator.startswith(self._pending[-n:])), 0
        )

    def _emit(self, text: str) -> Iterator[TextDelta]:
        if not text:
            return
        if self.separated:
            self.translation += text
            yield TextDelta("translation", text)
        else:
            self.transcript += text
            yield TextDelta("transcript", text)
