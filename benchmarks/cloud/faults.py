"""Kills of the engine's process under load: outcome of the requests, and time to recover."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from benchmarks.cloud.cases import Case
from benchmarks.cloud.client import Client, Reply
from benchmarks.cloud.service import Service

# Statuses after which a client may send the request again.
RETRIABLE = frozenset({429, 502, 503, 504})
CONCURRENCY = 16
_NOTICED_S, _BACK_S, _POLL_S = 30.0, 120.0, 0.05
_RETRY_S = 0.5


@dataclass
class Outcome:
    """Outcome of all requests and of each kill.

    Attributes:
        requests: counts of ``right``, ``retriable``, ``wrong`` and ``lost``.
        lost: descriptions of wrong and lost requests, at most ten.
        kills: seconds from a kill until ``/readyz`` answers 503, and until it answers 200 again.
    """

    requests: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    kills: list[dict[str, float | None]] = field(default_factory=list)

    @property
    def failures(self) -> int:
        """Number of wrong and lost requests, and of kills without recovery."""
        dead = sum(kill["ready_s"] is None for kill in self.kills)
        return self.requests["wrong"] + self.requests["lost"] + dead


def classify_reply(reply: Reply, expected: Mapping[str, set[tuple[str, str]]], case: Case) -> str:
    """Outcome of a request: ``right``, ``retriable``, ``wrong`` or ``lost``."""
    answer = reply.answer()
    if answer:
        texts = answer["transcript"], answer["translation"]
        return "right" if texts in expected[case.name] else "wrong"
    status = reply.problem().get("status", 0)
    return "retriable" if status in RETRIABLE else "lost"


async def kill_repeatedly(
    service: Service,
    cases: Sequence[Case],
    expected: Mapping[str, set[tuple[str, str]]],
    times: int,
) -> Outcome:
    """Kill the engine's process repeatedly under a load of plain and streamed requests.

    Args:
        service: the gateway, ready.
        cases: cases to request in turn.
        expected: answers to each case while the engine is healthy.
        times: number of kills.
    """
    outcome, stop = Outcome(), asyncio.Event()
    requests = [case.http(events=events) for events in (False, True) for case in cases]
    turns = count()

    async def worker(client: Client, turns: Iterator[int]) -> None:
        while not stop.is_set():
            place = next(turns) % len(requests)
            case = cases[place % len(cases)]
            reply = await client.send(requests[place])
            outcome_kind = classify_reply(reply, expected, case)
            outcome.requests[outcome_kind] += 1
            if outcome_kind in ("wrong", "lost") and len(outcome.lost) < 10:
                problem = reply.problem() or reply.body[-300:].decode("utf-8", "replace")
                outcome.lost.append(
                    f"{case.name}: {outcome_kind}, {reply.status} {json.dumps(problem)}"
                )
            if outcome_kind != "right":
                await asyncio.sleep(_RETRY_S)

    async with Client(service.port) as client, asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(worker(client, turns))
        generator = random.Random(times)
        try:
            for _ in range(times):
                await asyncio.sleep(generator.uniform(1.0, 3.0))
                outcome.kills.append(await _kill(service))
                if outcome.kills[-1]["ready_s"] is None:
                    break
            await asyncio.sleep(1.0)
        finally:
            stop.set()
    return outcome


async def _kill(service: Service) -> dict[str, float | None]:
    engine = service.engine()
    if engine is None:
        return {"noticed_s": None, "ready_s": None}
    begin = time.monotonic()
    engine.kill()
    noticed = await _until(service, False, begin, _NOTICED_S)
    return {"noticed_s": noticed, "ready_s": await _until(service, True, begin, _BACK_S)}


async def _until(service: Service, ready: bool, begin: float, seconds: float) -> float | None:
    while (passed := time.monotonic() - begin) < seconds:
        if await asyncio.to_thread(service.is_ready) is ready:
            return round(passed, 2)
        await asyncio.sleep(_POLL_S)
    return None


def summary(outcome: Outcome, start_s: float) -> dict[str, Any]:
    """Outcome as JSON for the report."""
    return {
        "requests": dict(outcome.requests),
        "lost": outcome.lost,
        "start_s": round(start_s, 2),
        "kills": outcome.kills,
    }
