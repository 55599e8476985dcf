"""From token ids to text while they arrive, the same for every engine."""

from collections.abc import Iterable
from typing import Any

# What an incomplete UTF-8 sequence decodes to.
_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Decodes token ids in pieces that join to exactly what decoding them at once gives.

    A character may be spread over tokens, and a token's text may depend on the one before it. So
    each new token is decoded together with the last piece, and text that ends inside a character
    is held back (the two offsets of text-generation-inference and vLLM). vLLM's own detokenizer
    is not used because it drops what is held back at the end.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = self._decoded = 0

    def feed(self, ids: Iterable[int]) -> None:
        """Take the next ids."""
        self._ids += ids

    def flush_stable(self) -> str:
        """The text that no id to come can change, beyond what was given before."""
        text = self._new_text()
        if text.endswith(_REPLACEMENT):
            return ""
        self._context, self._decoded = self._decoded, len(self._ids)
        return text

    def finish(self) -> str:
        """All text that was not given before, once there are no more ids."""
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
