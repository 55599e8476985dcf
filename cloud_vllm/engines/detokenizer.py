"""Incremental detokenization, the same for every engine."""

from collections.abc import Iterable
from typing import Any

# The decoded form of an incomplete UTF-8 sequence.
_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Decodes token ids into chunks whose concatenation equals decoding all ids at once.

    A character may span several tokens, and the text of a token may depend on the token before.
    So each new token is decoded together with the last chunk, and text that ends inside a
    character is held back (the two offsets of text-generation-inference and vLLM). vLLM's own
    detokenizer drops the text held back at the end, so it is not used.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = self._decoded = 0

    def feed(self, ids: Iterable[int]) -> None:
        """Append ids."""
        self._ids += ids

    def flush_stable(self) -> str:
        """Return new text that no later id can change."""
        text = self._new_text()
        if text.endswith(_REPLACEMENT):
            return ""
        self._context, self._decoded = self._decoded, len(self._ids)
        return text

    def finish(self) -> str:
        """Return all remaining text, after the last id."""
        text = self._new_text()
        self._context = self._decoded = len(self._ids)
        return text

    def _new_text(self) -> str:
        if self._decoded == len(self._ids):
            return ""
        known = self._decode(self._ids[self._context : self._decoded])
        return self._decode(self._ids[self._context :])[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text
