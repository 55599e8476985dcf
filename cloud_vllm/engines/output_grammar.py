"""The form of an answer, ``transcript<|src|><|tgt|>translation``, which every engine enforces.

The transcript and the translation hold no special tokens, the separator comes exactly once, and
the end of sequence only after it. An answer can still be cut: at its longest length, or where it
only repeats itself.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cloud_vllm.engines.base import Confidence, prompt_ids
from esrt.languages import LANGUAGES, Language

# The longest piece of text, in tokens, whose repetition is noticed.
LONGEST_PATTERN = 16


@dataclass(frozen=True)
class OutputGrammar:
    """One direction's form, in token ids.

    Attributes:
        prompt: the two tags, which are both the prompt's end and the separator.
        end: the end of sequence.
        special: what neither text may hold: the tags of all languages and the tokenizer's special
            tokens, but not the end of sequence.
    """

    prompt: tuple[int, int]
    end: int
    special: tuple[int, ...]

    def structural_tag(self) -> str:
        """The form as xgrammar's structural tag, JSON.

        Tokens are given as ids: xgrammar does not match special tokens by their text.
        """
        text = {"type": "any_tokens", "exclude_tokens": list(self.special)}
        tags = [{"type": "token", "token": tag} for tag in self.prompt]
        elements = [text, *tags, text]
        return json.dumps(
            {"type": "structural_tag", "format": {"type": "sequence", "elements": elements}}
        )


class Score:
    """Sums up log-probabilities while the tokens of an answer arrive.

    Args:
        form: tells the transcript's tokens from the translation's.
    """

    def __init__(self, grammar: OutputGrammar) -> None:
        self._source, self._target = grammar.prompt
        self._sums, self._counts, self._part = [0.0, 0.0], [0, 0], 0

    def add(self, token: int, logprob: float) -> None:
        """Take the next token and its natural log-probability."""
        # The second tag is forced by the first: its probability of 1 says nothing.
        if token != self._target or self._part == 0:
            self._sums[self._part] += logprob
            self._counts[self._part] += 1
        if token == self._source:
            self._part = 1

    def confidence(self) -> Confidence:
        """The means over what has arrived."""
        means = [
            total / count if count else None
            for total, count in zip(self._sums, self._counts, strict=True)
        ]
        return Confidence(*means)


class GrammarCache:
    """The forms of a tokenizer's directions, each made once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._made: dict[tuple[str, str], OutputGrammar] = {}
        self._end: int = tokenizer.eos_token_id
        vocabulary = tokenizer.get_vocab()
        tags = {vocabulary[tag] for one in LANGUAGES.values() if (tag := one.tag) in vocabulary}
        self._special = tuple(sorted({*tags, *tokenizer.all_special_ids} - {self._end}))

    def of(self, source: Language, target: Language) -> OutputGrammar:
        """A direction's form.

        Raises:
            CheckpointError: the tokenizer lacks a tag.
        """
        key = source.code, target.code
        if key not in self._made:
            first, second = prompt_ids(self._tokenizer, source, target)
            self._made[key] = OutputGrammar((first, second), self._end, self._special)
        return self._made[key]


def repeats(ids: Sequence[int], times: int) -> bool:
    """Whether the tokens end in a pattern that has come so many times in a row.

    The same rule as vLLM's ``RepetitionDetectionParams``: patterns of up to `LONGEST_PATTERN`
    tokens; 0 times looks for none.
    """
    if times < 2:
        return False
    for size in range(1, min(LONGEST_PATTERN, len(ids) // times) + 1):
        tail = ids[len(ids) - size * times :]
        if all(tail[i] == tail[i + size] for i in range(len(tail) - size)):
            return True
    return False
