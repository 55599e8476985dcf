"""Closed load, with a fixed number of requests at once, and open load, with random arrivals."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from benchmarks.cloud.client import Client, Reply

QUANTILES = (50, 95, 99)


@dataclass(frozen=True)
class LoadResult:
    """Replies under load.

    Attributes:
        seconds: from the first request to the last reply.
        replies: in the order of the requests.
    """

    seconds: float
    replies: list[Reply]

    @property
    def times(self) -> list[tuple[float, float, float]]:
        """Times of each request on `time.perf_counter`: sent, first event, complete."""
        return [(reply.sent, reply.first, reply.done) for reply in self.replies]


async def closed_loop(port: int, requests: Sequence[bytes], at_once: int) -> LoadResult:
    """Keep ``at_once`` requests under way until all are answered."""
    replies: dict[int, Reply] = {}
    left: Iterator[tuple[int, bytes]] = iter(enumerate(requests))
    begin = perf_counter()

    async def worker(client: Client) -> None:
        for place, request in left:
            replies[place] = await client.send(request)

    async with Client(port) as client:
        await asyncio.gather(*(worker(client) for _ in range(at_once)))
    return LoadResult(perf_counter() - begin, [replies[place] for place in sorted(replies)])


async def open_loop(
    port: int, requests: Sequence[bytes], per_second: float, seed: int
) -> LoadResult:
    """Send requests at the times of a Poisson process, without waiting for answers.

    Times count from when a request was due, so that delays of the load generator are included.
    """
    generator, begin = random.Random(seed), perf_counter() + 0.05
    due, tasks = begin, []
    async with Client(port) as client, asyncio.TaskGroup() as group:
        for request in requests:
            due += generator.expovariate(per_second)
            await asyncio.sleep(max(0.0, due - perf_counter()))
            tasks.append(group.create_task(client.send(request, due)))
        replies = [await task for task in tasks]
    return LoadResult(max(reply.done for reply in replies) - begin, replies)


def latency_quantiles(times: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    """Quantiles in milliseconds from a request to the complete answer."""
    return _quantiles([done - sent for sent, _, done in times], "latency_ms")


def first_token_quantiles(times: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    """Quantiles in milliseconds from a request to the first event of its answer."""
    return _quantiles([first - sent for sent, first, _ in times], "first_token_ms")


def _quantiles(seconds: Sequence[float], name: str) -> dict[str, float]:
    """Percentiles 50, 95 and 99, as ``name_p50`` and so on."""
    return {
        f"{name}_p{quantile}": round(1e3 * float(value), 2)
        for quantile, value in zip(QUANTILES, np.percentile(seconds, QUANTILES), strict=True)
    }
