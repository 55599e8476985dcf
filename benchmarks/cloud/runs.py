"""Interleaved rounds of closed load on all systems, and their comparison; then open load.

The speed of a machine drifts within seconds. So in each round every system answers the same cases,
one system after the other in a random order, and systems are compared round by round.
"""

import asyncio
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import comb
from typing import Any

from benchmarks.cloud import load
from benchmarks.cloud.cases import Case, draw_cases
from benchmarks.cloud.service import Service
from benchmarks.cloud.systems import Run, System, gateway_answer, read_all

# Requests at once. One at a time shows the cost of a request without batching.
CONCURRENCIES = (1, 16, 64)
# Systems without batching run with one request at a time only.
UNBATCHED = ("transformers",)
# Systems that stream, so that the time of the first token is known.
STREAMING = ("gateway events", "vllm serve events", "engine")
# Rates of the open load, as shares of the answers per second with the most requests at once.
RATES = (0.25, 0.5, 0.75, 0.9)
# The engine's threads wait for more work by spinning, which would slow the next system down.
_IDLE_S = 0.4
_CONFIDENCE = 0.95

Row = dict[str, Any]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Confidence interval of the median, at least 95 %, from order statistics.

    The interval holds for any distribution. Below six values it is the whole range, whose
    confidence is less than 95 %.
    """
    ordered, count = sorted(values), len(values)
    # An interval without the lowest and the highest k values misses the median with twice the
    # probability that at most k of the values lie below the median: a binomial distribution.
    dropped, tail = 0, 0.5**count
    while True:
        tail += comb(count, dropped + 1) * 0.5**count
        if 2 * tail > 1 - _CONFIDENCE:
            return ordered[dropped], ordered[-1 - dropped]
        dropped += 1


class Measurements:
    """Runs of each system at each number of requests at once, in the order of the rounds."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, int], list[Run]] = defaultdict(list)

    def throughputs(self, system: str, at_once: int) -> list[float]:
        """Tokens per second in each round."""
        return [run.tokens / run.seconds for run in self.runs[system, at_once]]

    def answer_rates(self, system: str, at_once: int) -> list[float]:
        """Answers per second in each round."""
        return [len(run.times) / run.seconds for run in self.runs[system, at_once]]

    def cpu_ms(self, system: str, at_once: int) -> list[float]:
        """CPU milliseconds per request in each round; the engine's process is not counted."""
        return [1e3 * run.cpu_s / len(run.times) for run in self.runs[system, at_once]]

    def differing_texts(self, system: str, other: str) -> tuple[int, int]:
        """Answers of two systems to the same cases: how many differ, and how many there are."""
        pairs = [
            pair
            for at_once in CONCURRENCIES
            for mine, theirs in zip(
                self.runs[system, at_once], self.runs[other, at_once], strict=True
            )
            for pair in zip(mine.texts, theirs.texts, strict=True)
        ]
        return sum(mine != theirs for mine, theirs in pairs), len(pairs)

    def rows(self) -> list[Row]:
        """One row for each system and number of requests at once: medians of the rounds."""
        rows = []
        for (system, at_once), runs in self.runs.items():
            times = [moment for run in runs for moment in run.times]
            row = {
                "load": "closed",
                "system": system,
                "concurrency": at_once,
                "tokens_per_s": round(statistics.median(self.throughputs(system, at_once)), 1),
                "answers_per_s": round(statistics.median(self.answer_rates(system, at_once)), 1),
                "cpu_ms": round(statistics.median(self.cpu_ms(system, at_once)), 3),
                **load.latency_quantiles(times),
            }
            if system in STREAMING:
                row |= load.first_token_quantiles(times)
            rows.append(row)
        return sorted(rows, key=lambda row: (row["concurrency"], row["system"]))

    def comparisons(self) -> list[Row]:
        """The gateway over the other systems: values of the rounds, median and its interval."""
        rows = []
        for at in CONCURRENCIES:
            rows += [
                self._ratio(f"throughput_over_engine_{at}", self.throughputs, "engine", at),
                self._ratio(f"throughput_over_vllm_serve_{at}", self.throughputs, "vllm serve", at),
                self._ratio(f"cpu_ms_over_vllm_serve_{at}", self.cpu_ms, "vllm serve", at),
            ]
            for name, figures in (("throughput", self.throughputs), ("cpu_ms", self.cpu_ms)):
                values = zip(
                    figures("gateway events", at), figures("vllm serve events", at), strict=True
                )
                rows.append(
                    _comparison(f"events_{name}_over_vllm_serve_{at}", [a / b for a, b in values])
                )
        unbatched = zip(self.cpu_ms("gateway", 1), self.cpu_ms("engine", 1), strict=True)
        rows.append(
            _comparison(
                "gateway_minus_engine_cpu_ms_1", [gateway - engine for gateway, engine in unbatched]
            )
        )
        return rows

    def _ratio(
        self, name: str, figures: Callable[[str, int], list[float]], other: str, at_once: int
    ) -> Row:
        pairs = zip(figures("gateway", at_once), figures(other, at_once), strict=True)
        return _comparison(name, [mine / theirs for mine, theirs in pairs])


def _comparison(name: str, values: list[float]) -> Row:
    low, high = median_interval(values)
    return {
        "load": "comparison",
        "name": name,
        "median": round(statistics.median(values), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "rounds": [round(value, 4) for value in values],
    }


def closed_rounds(
    systems: Mapping[str, System],
    cases: Sequence[Case],
    rounds: int,
    turns: int,
    progress: Callable[[str], None],
) -> Measurements:
    """Run closed load on each system in turn; the first round is a warm-up and is not counted.

    Args:
        systems: the systems by name.
        cases: all cases, of which each run draws some.
        rounds: counted rounds.
        turns: requests in a run for each request at once; twice as many for one at a time.
        progress: takes a line of text when a round begins.
    """
    measured = Measurements()
    for number in range(rounds + 1):
        progress(f"closed load, round {number} of {rounds}" if number else "closed load, warm-up")
        for at_once in CONCURRENCIES:
            chosen = draw_cases(cases, max(2, at_once) * turns, seed=number)
            names = [name for name in systems if at_once == 1 or name not in UNBATCHED]
            for name in random.Random(number).sample(names, len(names)):
                run = systems[name].run(chosen, at_once)
                if number:
                    measured.runs[name, at_once].append(run)
                time.sleep(_IDLE_S)
    return measured


def open_rows(
    service: Service, cases: Sequence[Case], capacity: float, seconds: float
) -> list[Row]:
    """Measure streams under open load, at shares of the capacity in answers per second."""
    rows = []
    for share in RATES:
        rate = share * capacity
        chosen = draw_cases(cases, int(rate * seconds) + 1, 7)
        requests = [case.http(events=True) for case in chosen]
        time.sleep(_IDLE_S)
        result = asyncio.run(load.open_loop(service.port, requests, rate, seed=11))
        answers = read_all(result.replies, chosen, gateway_answer)
        tokens = sum(answer.tokens for answer in answers)
        rows.append(
            {
                "load": "open",
                "system": "gateway events",
                "rate": round(rate, 1),
                "tokens_per_s": round(tokens / result.seconds, 1),
                "answers_per_s": round(len(answers) / result.seconds, 1),
                **load.latency_quantiles(result.times),
                **load.first_token_quantiles(result.times),
            }
        )
    return rows
