"""The text around the features: the prompt that follows them and the target the decoder writes.

The decoder reads ``[features] <|src|><|tgt|>`` and writes
``transcript<|src|><|tgt|>translation``; the separator equals the prompt (arXiv 2605.28642).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from esrt.languages import Language


@dataclass(frozen=True)
class TextDelta:
    """A piece of output text and the part of the answer that it belongs to."""

    part: Literal["transcript", "translation"]
    text: str


def separator(source: Language, target: Language) -> str:
    """The two tags that are both the prompt and the boundary inside the target."""
    return source.tag + target.tag


def target_text(transcript: str, translation: str, source: Language, target: Language) -> str:
    """What the decoder is trained to write, without the end-of-sequence token."""
    return f"{transcript}{separator(source, target)}{translation}"


def split_target(text: str, source: Language, target: Language) -> tuple[str, str]:
    """Transcript and translation of a whole answer; the latter is empty without a separator."""
    splitter = TargetSplitter(source, target)
    for _ in (*splitter.feed(text), *splitter.finish()):
        pass
    return splitter.transcript, splitter.translation


class TargetSplitter:
    """Tells transcript from translation while the decoder's text arrives in pieces.

    Text that may yet turn out to be the beginning of the separator is held back until that is
    decided, so no fragment of a tag is ever shown to a reader.
    """

    def __init__(self, source: Language, target: Language) -> None:
        self._separator = separator(source, target)
        self._pending = ""
        self.separated = False
        self.transcript = ""
        self.translation = ""

    def feed(self, text: str) -> Iterator[TextDelta]:
        """Take the next piece of decoded text, special tokens included; yield what is certain."""
        if self.separated:
            yield from self._emit(text)
            return
        self._pending += text
        transcript, found, rest = self._pending.partition(self._separator)
        if found:
            yield from self._emit(transcript)
            self.separated, self._pending = True, ""
            yield from self._emit(rest)
            return
        held = self._held_back()
        certain = self._pending[: len(self._pending) - held]
        self._pending = self._pending[len(certain) :]
        yield from self._emit(certain)

    def finish(self) -> Iterator[TextDelta]:
        """Yield what was held back, once the decoder has ended."""
        pending, self._pending = self._pending, ""
        yield from self._emit(pending)

    def _held_back(self) -> int:
        """Length of the longest end of the pending text that begins the separator."""
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
