"""Sampling of training examples: balanced over languages and pairs, each with a task."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from training.corpus.build import Corpus, Example
from training.recipe import Balance, Task

# Batches are cut from a pool of this many, sorted by length, to reduce padding.
_POOL_BATCHES = 50

_T = TypeVar("_T")


@dataclass(frozen=True)
class Item:
    """An example, its target language, and its task."""

    example: Example
    target: str
    task: Task


class Sampler:
    """Sampler of items, without end.

    A source language is drawn by its balanced share (see `Balance`), then one of its pairs by the
    pair's capped size, then the pair's next example. A pair's examples come in random order, each
    once before any is repeated.
    """

    def __init__(
        self, corpus: Corpus, balance: Balance, tasks: Mapping[Task, float], random: Random
    ) -> None:
        self._random, self._tasks = random, tasks
        pairs: dict[tuple[str, str], list[Example]] = defaultdict(list)
        for example in corpus.examples:
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
        self._orders = {pair: self._order(examples) for pair, examples in self._pairs.items()}

    def items(self) -> Iterator[Item]:
        """Draw items, without end."""
        while True:
            source = self._choice(self._sources)
            target = self._choice(self._targets[source])
            yield Item(next(self._orders[source, target]), target, self._choice(self._tasks))

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
