"""Sampling of examples: balance of languages and pairs, no early repeats, shares of tasks."""

import itertools
from collections import Counter, defaultdict
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.corpus.build import Corpus, Example
from training.recipe import Balance, Task
from training.sampling import Item, Sampler

CODES = ("eng", "deu", "kor", "tur")
SRT = {Task.SRT: 1.0}
quick = settings(max_examples=30, deadline=None)
counts = st.dictionaries(st.sampled_from(CODES), st.integers(1, 12), min_size=1)


def corpus_of(sizes: dict[str, int]) -> Corpus:
    """Make a corpus with the given number of examples in each language, with four texts each."""
    spoken = [code for code, size in sizes.items() for _ in range(size)]
    lengths = Random(0).sample(range(1000, 100_000), len(spoken))
    examples = [
        Example(number, samples, code, "m1", "phrase", {c: f"{c} {number}" for c in CODES})
        for number, (code, samples) in enumerate(zip(spoken, lengths, strict=True))
    ]
    return Corpus(np.zeros(0, np.int16), examples)


def sampler(sizes: dict[str, int], seed: int = 0, **balance: float) -> Sampler:
    return Sampler(corpus_of(sizes), Balance.model_validate(balance), SRT, Random(seed))


def drawn(source: Sampler, count: int) -> list[Item]:
    return list(itertools.islice(source.items(), count))


def by_pair(items: list[Item]) -> dict[tuple[str, str], list[int]]:
    """Group the start of each drawn example by pair, in order."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for item in items:
        found[item.example.language, item.target].append(item.example.start)
    return found


@quick
@given(sizes=counts, cap=st.integers(1, 15), seed=st.integers())
def test_the_cap_holds_for_every_pair(sizes: dict[str, int], cap: int, seed: int) -> None:
    for (source, target), starts in by_pair(drawn(sampler(sizes, seed, cap=cap), 400)).items():
        assert source != target
        assert len(set(starts)) <= min(cap, sizes[source])


@quick
@given(sizes=counts, seed=st.integers())
def test_examples_repeat_only_after_all_were_drawn(sizes: dict[str, int], seed: int) -> None:
    for (source, _), starts in by_pair(drawn(sampler(sizes, seed), 500)).items():
        size = sizes[source]
        for start in range(0, len(starts), size):
            part = starts[start : start + size]
            assert len(set(part)) == len(part)


@pytest.mark.parametrize(
    ("sizes", "balance", "share"),
    [
        ({"eng": 90, "kor": 10}, {"temperature": 1}, 0.9),
        ({"eng": 90, "kor": 10}, {"temperature": 2}, 0.75),
        ({"eng": 90, "kor": 10}, {"temperature": 1000}, 0.5),
        ({"eng": 400, "kor": 10}, {"cap": 40}, 0.8),
        ({"eng": 400, "kor": 10}, {"cap": 90, "temperature": 2}, 0.75),
    ],
)
def test_languages_are_drawn_by_their_shares(
    sizes: dict[str, int], balance: dict[str, float], share: float
) -> None:
    """The cap applies before the temperature: n^(1/T) of n examples."""
    items = drawn(sampler(sizes, **balance), 3000)
    found = Counter(item.example.language for item in items)
    assert found["eng"] / 3000 == pytest.approx(share, abs=0.04)


def test_every_direction_is_drawn_equally_often() -> None:
    found = by_pair(drawn(sampler(dict.fromkeys(CODES, 5)), 6000))
    assert len(found) == 12
    assert all(len(starts) == pytest.approx(500, rel=0.25) for starts in found.values())


def test_languages_without_speech_are_targets_only() -> None:
    items = drawn(sampler({"eng": 3}), 100)
    assert {item.example.language for item in items} == {"eng"}
    assert {item.target for item in items} == {"deu", "kor", "tur"}


def test_tasks_come_in_proportion() -> None:
    tasks = {Task.ASR: 1.0, Task.SMT: 3.0, Task.SRT: 6.0}
    items = drawn(Sampler(corpus_of({"eng": 20}), Balance(), tasks, Random(0)), 4000)
    found = Counter(item.task for item in items)
    assert {task: found[task] / 400 for task in tasks} == pytest.approx(tasks, abs=0.35)


def test_batches_hold_similar_lengths() -> None:
    batches = list(itertools.islice(sampler(dict.fromkeys(CODES, 50)).batches(8), 50))
    assert {len(batch) for batch in batches} == {8}
    lengths = [[item.example.samples for item in batch] for batch in batches]
    spread = np.mean([max(batch) - min(batch) for batch in lengths])
    everything = [length for batch in lengths for length in batch]
    assert spread < 0.1 * (max(everything) - min(everything))
    means = [np.mean(batch) for batch in lengths]
    assert means != sorted(means)  # long and short batches in turn


@pytest.mark.parametrize("size", [1, 7])
def test_batches_follow_the_seed(size: int) -> None:
    def first(seed: int) -> list[list[Item]]:
        return list(itertools.islice(sampler({"eng": 30, "deu": 9}, seed).batches(size), 60))

    assert first(0) == first(0) != first(1)
