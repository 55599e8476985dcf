"""Sampling of training examples: balanced over languages and pairs, each with a task."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from training.corpus.build import NON_SPEECH, OPEN, Corpus, Example
from training.recipe import Balance, Task
from training.state_corpus import StateCorpus

# Batches are cut from a pool of this many, sorted by length, to reduce padding.
_POOL_BATCHES = 50
_TRANSLATED, _WRONG_LANGUAGE = "translated", "wrong language"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Item:
    """An example, its target language, and its task.

    Attributes:
        example: the utterance.
        target: language of the translation.
        task: the task.
        named: a language that the prompt names instead of the spoken one; the answer is empty.
    """

    example: Example
    target: str
    task: Task
    named: str | None = None


class Sampler:
    """Sampler of items, without end.

    A source language is drawn by its balanced share (see `Balance`), then one of its pairs by the
    pair's capped size, then the pair's next example. A pair's examples come in random order, each
    once before any is repeated.

    Examples of the kinds `OPEN` and `NON_SPEECH` have no translation, and a part of the others gets
    a prompt that names a wrong language. Shares of the items are settings of the balance. Languages
    of these items are drawn evenly. Their task is recognition for `OPEN`, otherwise that of
    inference, whatever the stage.
    """

    def __init__(
        self,
        corpus: Corpus | StateCorpus,
        balance: Balance,
        tasks: Mapping[Task, float],
        random: Random,
    ) -> None:
        self._random, self._tasks = random, tasks
        pairs: dict[tuple[str, str], list[Example]] = defaultdict(list)
        alone: dict[str, dict[str, list[Example]]] = {OPEN: {}, NON_SPEECH: {}}
        for example in corpus.examples:
            if example.kind in alone:
                alone[example.kind].setdefault(example.language, []).append(example)
                continue
            for target in example.texts.keys() - {example.language}:
                pairs[example.language, target].append(example)
        self._pairs = {
            pair: random.sample(pairs[pair], min(len(pairs[pair]), balance.cap or len(pairs[pair])))
            for pair in sorted(pairs)
        }
        self._targets: dict[str, dict[str, int]] = defaultdict(dict)
        for (source, target), examples in self._pairs.items():
            self._targets[source][target] = len(examples)
        self._sources = {
            source: sum(targets.values()) ** (1 / balance.temperature)
            for source, targets in self._targets.items()
        }
        self._alone = {
            kind: {language: self._order(group) for language, group in groups.items()}
            for kind, groups in alone.items()
        }
        shares = {
            OPEN: balance.open if alone[OPEN] else 0,
            NON_SPEECH: balance.non_speech if alone[NON_SPEECH] else 0,
            _WRONG_LANGUAGE: balance.wrong_language,
        }
        self._shares = {kind: share for kind, share in shares.items() if share}
        self._shares |= {_TRANSLATED: 1 - sum(self._shares.values())} if self._shares else {}
        self._orders = {pair: self._order(examples) for pair, examples in self._pairs.items()}

    def items(self) -> Iterator[Item]:
        """Draw items, without end."""
        while True:
            kind = self._choice(self._shares) if self._shares else _TRANSLATED
            if kind in self._alone:
                yield self._item_alone(kind)
                continue
            source = self._choice(self._sources)
            target = self._choice(self._targets[source])
            example = next(self._orders[source, target])
            if kind == _WRONG_LANGUAGE:
                named = self._random.choice(sorted(self._targets.keys() - {source, target}))
                yield Item(example, target, Task.SRT, named)
            else:
                yield Item(example, target, self._choice(self._tasks))

    def _item_alone(self, kind: str) -> Item:
        """Draw an example without a translation, into any language of the translations."""
        language = self._random.choice(sorted(self._alone[kind]))
        target = self._random.choice(sorted(self._targets.keys() - {language}))
        task = Task.ASR if kind == OPEN else Task.SRT
        return Item(next(self._alone[kind][language]), target, task)

    def batches(self, size: int) -> Iterator[list[Item]]:
        """Draw batches of items of similar length, without end."""
        items = self.items()
        while True:
            pool = sorted(
                (next(items) for _ in range(_POOL_BATCHES * size)),
                key=lambda item: item.example.samples,
            )
            groups = [pool[start : start + size] for start in range(0, len(pool), size)]
            self._random.shuffle(groups)
            yield from groups

    def _order(self, examples: list[Example]) -> Iterator[Example]:
        while True:
            yield from self._random.sample(examples, len(examples))

    def _choice(self, weights: Mapping[_T, float]) -> _T:
        return self._random.choices(list(weights), list(weights.values()))[0]
