"""Minutes of mixed load, and the growth of the gateway's and the engine's memory."""

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cloud.cases import Case, http_request
from benchmarks.cloud.client import Client
from benchmarks.cloud.service import Service
from esrt.wire import MEDIA_TYPE

CONCURRENCY = 8
_SAMPLES = 240
# Shares of the kinds of requests in percent; the rest are plain translations.
_MIX = {"events": 20, "languages": 5, "stored": 5, "malformed": 5, "abandoned": 5}


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
        for seed in range(CONCURRENCY):
            group.create_task(worker(client, seed))
        while (now := time.monotonic()) < end:
            samples.append({"s": round(now - begin, 1), **service.resident()})
            await asyncio.sleep(60 * minutes / _SAMPLES)
    return Soak(samples, dict(requests), dict(unexpected))


def _draw(generator: random.Random) -> str:
    percent = generator.randrange(100)
    for kind, share in _MIX.items():
        if percent < share:
            return kind
        percent -= share
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
        return (await client.send(broken.http())).status, (400,)
    if kind == "languages":
        other = next(code for code in ("eng", "deu", "fra") if code not in case.name[:3])
        both = sorted({case.target, other} - {case.source})
        several = Case(case.clip, case.packet, case.source, ",".join(both))
        return (await client.send(several.http())).status, (200,)
    if kind == "stored":
        return await _stored(client, case)
    return (await client.send(case.http(events=kind == "events"))).status, (200,)


async def _stored(client: Client, case: Case) -> tuple[int, tuple[int, ...]]:
    reply = await client.send(http_request("/v1/features", case.packet, MEDIA_TYPE))
    if reply.status != 201:
        return reply.status, (201,)
    handle = json.loads(reply.body)["features"]
    query = f"src={case.source}&tgt={case.target}&features={handle}"
    reply = await client.send(http_request(f"/v1/translate?{query}", b"", MEDIA_TYPE))
    await client.send(f"DELETE /v1/features/{handle} HTTP/1.1\r\nHost: benchmark\r\n\r\n".encode())
    return reply.status, (200,)
