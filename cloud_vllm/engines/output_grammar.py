"""The grammar of an answer, ``transcript<|src|><|tgt|>translation``, enforced by every engine.

The transcript and the translation hold no special tokens. The separator occurs exactly once. The
end of sequence is allowed only after the separator. An answer can still be cut, at its maximum
length or in a repetition.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cloud_vllm.engines.base import Confidence, prompt_ids
from esrt.languages import LANGUAGES, Language

# Longest pattern, in tokens, whose repetition is detected.
LONGEST_PATTERN = 16


@dataclass(frozen=True)
class OutputGrammar:
    """The grammar of one direction, in token ids.

    Attributes:
        prompt: the two tags, which are both the end of the prompt and the separator.
        end: the end of sequence.
        special: tokens excluded from both texts: the tags of all languages and the tokenizer's
            special tokens, without the end of sequence.
    """

    prompt: tuple[int, int]
    end: int
    special: tuple[int, ...]

    @cached_property
    def structural_tag(self) -> str:
        """The grammar as an xgrammar structural tag, in JSON.

        Tokens are given as ids: xgrammar does not match special tokens by their text.
        """
        text = {"type": "any_tokens", "exclude_tokens": list(self.special)}
        tags = [{"type": "token", "token": tag} for tag in self.prompt]
        elements = [text, *tags, text]
        return json.dumps(
            {"type": "structural_tag", "format": {"type": "sequence", "elements": elements}}
        )


class ConfidenceTracker:
    """Running sums of the log-probabilities of an answer's two parts.

    Args:
        grammar: the separator between transcript and translation.
    """

    def __init__(self, grammar: OutputGrammar) -> None:
        self._source, self._target = grammar.prompt
        self._sums, self._counts, self._part = [0.0, 0.0], [0, 0], 0

    def add(self, token: int, logprob: float) -> None:
        """Add the next token and its natural log-probability."""
        # The first tag forces the second, whose probability of 1 carries no information.
        if token != self._target or self._part == 0:
            self._sums[self._part] += logprob
            self._counts[self._part] += 1
        if token == self._source:
            self._part = 1

    def confidence(self) -> Confidence:
        """The means over the tokens added so far."""
        means = [
            total / count if count else None
            for total, count in zip(self._sums, self._counts, strict=True)
        ]
        return Confidence(*means)


class GrammarCache:
    """The grammars of a tokenizer's directions, each built once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._grammars: dict[tuple[str, str], OutputGrammar] = {}
        self._end: int = tokenizer.eos_token_id
        vocabulary = tokenizer.get_vocab()
        tags = {
            vocabulary[language.tag]
            for language in LANGUAGES.values()
            if language.tag in vocabulary
        }
        self._special = tuple(sorted({*tags, *tokenizer.all_special_ids} - {self._end}))

    def get(self, source: Language, target: Language) -> OutputGrammar:
        """The grammar of a direction.

        Raises:
            CheckpointError: the tokenizer lacks a tag.
        """
        key = source.code, target.code
        if key not in self._grammars:
            first, second = prompt_ids(self._tokenizer, source, target)
            self._grammars[key] = OutputGrammar((first, second), self._end, self._special)
        return self._grammars[key]


def ends_in_repetition(ids: Sequence[int], times: int) -> bool:
    """Whether the tokens end in a pattern that occurs at least ``times`` times in a row.

    The same rule as vLLM's ``RepetitionDetectionParams``: patterns of up to `LONGEST_PATTERN`
    tokens. With fewer than 2 times, nothing is detected.
    """
    if times < 2:
        return False
    for size in range(1, min(LONGEST_PATTERN, len(ids) // times) + 1):
        tail = ids[len(ids) - size * times :]
        if all(tail[i] == tail[i + size] for i in range(len(tail) - size)):
            return True
    return False
