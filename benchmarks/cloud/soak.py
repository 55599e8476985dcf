"""Minutes of mixed load, to see whether the memory of the gateway and the engine grows."""

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cloud.cases import Case
from benchmarks.cloud.client import Client
from benchmarks.cloud.service import Service
from esrt.wire import MEDIA_TYPE

AT_ONCE = 8
_SAMPLES = 240
# Shares of the kinds of requests in percent; the rest are plain translations.
_MIX = {"events": 20, "languages": 5, "kept": 5, "malformed": 5, "abandoned": 5}


@dataclass(frozen=True)
class Soak:
    """Memory over time, and unexpected answers.

    Attributes:
        samples: seconds since the start, and resident bytes of the gateway and the engine.
        requests: number of requests of each kind.
        unexpected: number of answers with a status that is wrong for the kind of request.
    """

    samples: list[dict[str, float]]
    requests: dict[str, int]
    unexpected: dict[str, int]

    def growth_pct(self, process: str) -> float:
        """Growth after the warm-up: the last fifth over the second fifth, medians."""
        fifth = max(1, len(self.samples) // 5)
        values = [sample[process] for sample in self.samples]
        before, after = values[fifth : 2 * fifth], values[-fifth:]
        return 100 * (statistics.median(after) / statistics.median(before) - 1)


async def soak(service: Service, cases: Sequence[Case], minutes: float) -> Soak:
    """Put mixed load on the gateway, and sample the memory meanwhile."""
    requests: Counter[str] = Counter()
    unexpected: Counter[str] = Counter()
    begin = time.monotonic()
    end = begin + 60 * minutes

    async def worker(client: Client, seed: int) -> None:
        generator = random.Random(seed)
        while time.monotonic() < end:
            kind = _draw(generator)
            requests[kind] += 1
            status, good = await _send(client, kind, generator.choice(cases), generator)
            if status not in good:
                unexpected[f"{kind} {status}"] += 1

    samples = []
    async with Client(service.port) as client, asyncio.TaskGroup() as group:
        for seed in range(AT_ONCE):
            group.create_task(worker(client, seed))
        while (now := time.monotonic()) < end:
            samples.append({"s": round(now - begin, 1), **service.resident()})
            await asyncio.sleep(60 * minutes / _SAMPLES)
    return Soak(samples, dict(requests), dict(unexpected))


def _draw(generator: random.Random) -> str:
    drawn = generator.randrange(100)
    for kind, share in _MIX.items():
        if drawn < share:
            return kind
        drawn -= share
    return "plain"


async def _send(
    client: Client, kind: str, case: Case, generator: random.Random
) -> tuple[int, tuple[int, ...]]:
    """Send a request of a kind; return its status and the expected ones."""
    if kind == "abandoned":
        await client.abandon(case.http(events=True), generator.uniform(0.001, 0.1))
        return 0, (0,)
    if kind == "malformed":
        cut = generator.randrange(1, len(case.packet))
        broken = Case(case.clip, case.packet[:cut], case.source, case.target)
        return (await client.ask(broken.http())).status, (400,)
    if kind == "languages":
        other = next(code for code in ("eng", "deu", "fra") if code not in case.name[:3])
        both = sorted({case.target, other} - {case.source})
        several = Case(case.clip, case.packet, case.source, ",".join(both))
        return (await client.ask(several.http())).status, (200,)
    if kind == "kept":
        return await _stored(client, case)
    return (await client.ask(case.http(events=kind == "events"))).status, (200,)


async def _stored(client: Client, case: Case) -> tuple[int, tuple[int, ...]]:
    host, length = "Host: gateway", f"Content-Length: {len(case.packet)}"
    head = f"POST /v1/features HTTP/1.1\r\n{host}\r\nContent-Type: {MEDIA_TYPE}\r\n{length}\r\n\r\n"
    reply = await client.ask(head.encode() + case.packet)
    if reply.status != 201:
        return reply.status, (201,)
    handle = json.loads(reply.body)["features"]
    query = f"src={case.source}&tgt={case.target}&features={handle}"
    head = f"POST /v1/translate?{query} HTTP/1.1\r\n{host}\r\nContent-Length: 0\r\n\r\n"
    reply = await client.ask(head.encode())
    await client.ask(f"DELETE /v1/features/{handle} HTTP/1.1\r\n{host}\r\n\r\n".encode())
    return reply.status, (200,)
