"""The rounds of load on the gateway and on what it is compared with."""

import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cloud import load
from benchmarks.cloud.baseline import SETTLE_S, BaselineProcess
from benchmarks.cloud.cases import Case, drawn
from benchmarks.cloud.client import Client
from benchmarks.cloud.service import Service
from benchmarks.cloud.slices import Competitor, compete

AT_ONCE = (16, 64)
# Shares of what the gateway reached with 64 at once, for the open loop.
RATES = (0.25, 0.5, 0.75, 0.9)
# The engine's threads wait for more work by spinning, which would slow the next one down.
_IDLE_S = 0.4
_TRANSFORMERS_PER_ROUND = 12
_UNSTREAMED = ("gateway", "transformers")
# So few that the machine is the same for both sides, and so many that they are not cold.
_CASES_PER_TURN = 12

Row = dict[str, Any]
# CPU seconds and tokens of a run, and when each answer was asked, begun and whole.
Work = tuple[float, int, list[tuple[float, float, float]]]


def _row(kind: str, side: str, at: float, tokens: float, answers: float) -> Row:
    throughput = {"tokens_per_s": round(tokens, 1), "answers_per_s": round(answers, 1)}
    return {"load": kind, "side": side, "at": at, **throughput}


class Measured:
    """Figures of the rounds, by side and requests at once."""

    def __init__(self) -> None:
        self.tokens: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.answers: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.cpu_ms: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.latencies: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.first: dict[tuple[str, int], list[float]] = defaultdict(list)

    def add(
        self, key: tuple[str, int], seconds: float, tokens: int, cpu_s: float,
        latencies: list[float], first: Sequence[float] = (),
    ) -> None:  # fmt: skip
        """Take in a round."""
        self.tokens[key].append(tokens / seconds)
        self.answers[key].append(len(latencies) / seconds)
        self.cpu_ms[key].append(1e3 * cpu_s / len(latencies))
        self.latencies[key] += latencies
        self.first[key] += first

    def throughput(self, side: str, at_once: int) -> float:
        """Tokens per second, the median of the rounds."""
        return statistics.median(self.tokens[side, at_once])

    def ratios(self, side: str, other: str, at_once: int) -> list[float]:
        """A side's throughput over another's in each round.

        Within a round they run in slices, so that a machine which is faster at one time than at
        another does not favour any.
        """
        pairs = zip(self.tokens[side, at_once], self.tokens[other, at_once], strict=True)
        return [round(mine / its, 4) for mine, its in pairs]

    def rows(self) -> list[Row]:
        """One for each side and number of requests at once."""
        rows = []
        for key in self.tokens:
            answers, cpu_ms = (statistics.median(it[key]) for it in (self.answers, self.cpu_ms))
            first = self.first[key]
            rows.append(
                _row("closed", *key, self.throughput(*key), answers)
                | {"cpu_ms": round(cpu_ms, 3)}
                | load.quantiles(self.latencies[key], "latency_ms")
                | (load.quantiles(first, "first_token_ms") if first else {})
            )
        return rows


@dataclass(frozen=True)
class Systems:
    """Who is measured.

    Attributes:
        service: the gateway.
        engine: vLLM as it comes.
        gathering: vLLM as the gateway runs and asks it.
        transformers: one answer after another.
    """

    service: Service
    engine: BaselineProcess
    gathering: BaselineProcess
    transformers: BaselineProcess


def closed_rounds(sides: Systems, cases: Sequence[Case], rounds: int, turns: int) -> Measured:
    """Closed load on each side; the first round is a warm-up.

    Each round puts the same requests to every side, the same number at every level of load. The
    gateway and vLLM run in slices (`compete`), streams and transformers by themselves.
    """
    measured = Measured()
    for round_ in range(-1, rounds):
        into = measured if round_ >= 0 else Measured()
        for at_once in AT_ONCE:
            asked = drawn(cases, max(AT_ONCE) * turns, seed=round_)
            competitors = {
                "engine": _bare(sides.engine, asked, at_once),
                "engine gathering": _bare(sides.gathering, asked, at_once),
                "gateway": _served(sides.service, asked, at_once, events=False),
            }
            order = list(competitors)[:: 1 if round_ % 2 else -1]
            _compete(into, at_once, {side: competitors[side] for side in order})
            time.sleep(_IDLE_S)
            events = _served(sides.service, asked, at_once, events=True)
            _compete(into, at_once, {"gateway events": events})
            time.sleep(_IDLE_S)
        asked = drawn(cases, _TRANSFORMERS_PER_ROUND, seed=round_)
        _compete(into, 1, {"transformers": _bare(sides.transformers, asked, 1)})
        time.sleep(_IDLE_S)
    return measured


def _compete(into: Measured, at_once: int, competitors: dict[str, Competitor]) -> None:
    for side, ((cpu_s, tokens, times), clock) in compete(competitors).items():
        ran = [[clock.at(moment) for moment in each] for each in times]
        into.add(
            (side, at_once),
            max(done for *_, done in ran),
            tokens,
            cpu_s,
            [1e3 * (done - sent) for sent, _, done in ran],
            [] if side in _UNSTREAMED else [1e3 * (first - sent) for sent, first, _ in ran],
        )


def _bare(bare: BaselineProcess, asked: list[Case], at_once: int) -> Competitor:
    def work() -> Work:
        run = bare.run(asked, at_once)
        return run.cpu_s, run.tokens, run.times

    return Competitor(bare.pid, work)


def _served(service: Service, asked: list[Case], at_once: int, *, events: bool) -> Competitor:
    requests = [case.http(events=events) for case in asked]

    def work() -> Work:
        before = service.cpu_s()
        got = asyncio.run(load.closed(service.port, requests, at_once))
        used = service.cpu_s() - before
        got.check()
        return used, got.tokens, got.times

    return Competitor(service.process.pid, work)


def gateway_cpu(
    service: Service, bare: BaselineProcess, cases: Sequence[Case], rounds: int
) -> dict[str, float]:
    """CPU of one request at a time: the gateway's process less what `AsyncLLM` takes by itself.

    Both processes hold an `AsyncLLM`, which talks to the engine's process; the bare one holds
    nothing else, and is asked in the same way. So the difference, case by case, is what the gateway
    adds: HTTP, checks, decoding the packet, detokenizing, the answer, metrics, the log. The two
    take turns every few cases, and a case's figures are medians of rounds; the first round is a
    warm-up.
    """

    async def each(some: Sequence[Case]) -> list[float]:
        async with Client(service.port) as client:
            used = []
            for case in some:
                before = service.cpu_s()
                await client.ask(case.http())
                await asyncio.sleep(SETTLE_S)
                used.append(1e3 * (service.cpu_s() - before))
        return used

    rows: list[tuple[list[float], list[float]]] = []
    for _ in range(1 + rounds):
        mine, its = list[float](), list[float]()
        for begin in range(0, len(cases), _CASES_PER_TURN):
            some = cases[begin : begin + _CASES_PER_TURN]
            mine += asyncio.run(each(some))
            its += bare.run(some, 1).cpu_ms
        rows.append((mine, its))
    whole, theirs = (np.median([row[side] for row in rows[1:]], axis=0) for side in (0, 1))
    return {
        "gateway_process_cpu_ms_p50": round(float(np.median(whole)), 3),
        "bare_client_cpu_ms_p50": round(float(np.median(theirs)), 3),
        **load.quantiles(whole - theirs, "gateway_cpu_ms"),
    }


def open_rows(
    service: Service, cases: Sequence[Case], capacity: float, seconds: float
) -> list[Row]:
    """Open load, streamed, at shares of the capacity (answers per second)."""
    rows = []
    for share in RATES:
        rate = share * capacity
        requests = [case.http(events=True) for case in drawn(cases, int(rate * seconds) + 1, 7)]
        time.sleep(_IDLE_S)
        got = asyncio.run(load.open_(service.port, requests, rate, seed=11))
        got.check()
        tokens, answers = got.tokens / got.seconds, len(requests) / got.seconds
        rows.append(
            _row("open", "gateway events", round(rate, 1), tokens, answers)
            | load.quantiles(got.latencies_ms, "latency_ms")
            | load.quantiles(got.first_ms, "first_token_ms")
        )
    return rows
