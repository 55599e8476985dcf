"""Drawing examples: balanced over languages and pairs, none again before all, tasks as asked."""

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


def made_of(sizes: dict[str, int]) -> Corpus:
    """So many examples spoken in each language, each with a text in all four."""
    spoken = [code for code, size in sizes.items() for _ in range(size)]
    lengths = Random(0).sample(range(1000, 100_000), len(spoken))
    examples = [
        Example(number, samples, code, "m1", "phrase", {c: f"{c} {number}" for c in CODES})
        for number, (code, samples) in enumerate(zip(spoken, lengths, strict=True))
    ]
    return Corpus(np.zeros(0, np.int16), examples)


def sampler(sizes: dict[str, int], seed: int = 0, **balance: float) -> Sampler:
    return Sampler(made_of(sizes), Balance.model_validate(balance), SRT, Random(seed))


def drawn(source: Sampler, count: int) -> list[Item]:
    return list(itertools.islice(source.items(), count))


def by_pair(items: list[Item]) -> dict[tuple[str, str], list[int]]:
    """Each pair's examples, in the order drawn."""
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
def test_all_of_a_pair_come_before_any_comes_again(sizes: dict[str, int], seed: int) -> None:
    for (source, _), starts in by_pair(drawn(sampler(sizes, seed), 500)).items():
        size = sizes[source]
        for start in range(0, len(starts), size):
            part = starts[start : start + size]
            assert len(set(part)) == len(part)


@quick
@given(sizes=counts, temperature=st.floats(1, 100))
def test_shares_follow_the_temperature(sizes: dict[str, int], temperature: float) -> None:
    """n^(1/T) of the examples n of a source language, that is of all its pairs."""
    shares = sampler(sizes, temperature=temperature).shares()
    weights = {code: (3 * size) ** (1 / temperature) for code, size in sizes.items()}
    total = sum(weights.values())
    assert shares == pytest.approx({code: weight / total for code, weight in weights.items()})


def test_the_cap_counts_before_the_temperature() -> None:
    shares = sampler({"eng": 400, "deu": 10}, cap=40).shares()
    assert shares == pytest.approx({"eng": 0.8, "deu": 0.2})


@pytest.mark.parametrize(("temperature", "share"), [(1, 0.9), (2, 0.75), (1000, 0.5)])
def test_languages_are_drawn_by_their_shares(temperature: float, share: float) -> None:
    items = drawn(sampler({"eng": 90, "kor": 10}, temperature=temperature), 3000)
    found = Counter(item.example.language for item in items)
    assert found["eng"] / 3000 == pytest.approx(share, abs=0.04)


def test_every_direction_is_drawn_alike() -> None:
    found = by_pair(drawn(sampler(dict.fromkeys(CODES, 5)), 6000))
    assert len(found) == 12
    assert all(len(starts) == pytest.approx(500, rel=0.25) for starts in found.values())


def test_languages_without_speech_are_targets_alone() -> None:
    items = drawn(sampler({"eng": 3}), 100)
    assert {item.example.language for item in items} == {"eng"}
    assert {item.target for item in items} == {"deu", "kor", "tur"}


def test_tasks_come_in_proportion() -> None:
    tasks = {Task.ASR: 1.0, Task.SMT: 3.0, Task.SRT: 6.0}
    items = drawn(Sampler(made_of({"eng": 20}), Balance(), tasks, Random(0)), 4000)
    found = Counter(item.task for item in items)
    assert {task: found[task] / 400 for task in tasks} == pytest.approx(tasks, abs=0.35)


def test_batches_hold_like_lengths() -> None:
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
