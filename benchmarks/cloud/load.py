"""Load: closed, so many requests at once, or open, arriving by chance at a given rate."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt

from benchmarks.cloud.client import Client, Reply
from esrt.errors import CheckFailed

QUANTILES = (50, 95, 99)


@dataclass(frozen=True)
class Load:
    """What came of it.

    Attributes:
        seconds: from the first request until the last answer.
        replies: in the order of the requests.
    """

    seconds: float
    replies: list[Reply]

    @property
    def tokens(self) -> int:
        """Tokens that were generated for answers that are whole."""
        answers = (reply.answer() for reply in self.replies)
        return sum(answer["tokens"]["generated"] for answer in answers if answer)

    @property
    def times(self) -> list[tuple[float, float, float]]:
        """When each was sent, had its first event and was whole, on `time.perf_counter`."""
        return [(reply.sent, reply.first, reply.done) for reply in self.replies]

    @property
    def latencies_ms(self) -> list[float]:
        """Until each answer was whole."""
        return [1e3 * (reply.done - reply.sent) for reply in self.replies]

    @property
    def first_ms(self) -> list[float]:
        """Until each answer's first event."""
        return [1e3 * (reply.first - reply.sent) for reply in self.replies]

    def check(self) -> None:
        """See that every request was answered.

        Raises:
            CheckFailed: one was not.
        """
        for reply in self.replies:
            if reply.answer() is None:
                said = reply.problem() or reply.body[:200]
                raise CheckFailed(
                    f"A request ended with {reply.status}: {said!r}.",
                    "Look into the gateway's log in build/benchmarks/cloud.",
                )


async def closed(port: int, requests: Sequence[bytes], at_once: int) -> Load:
    """Keep so many requests under way until all are answered."""
    replies: dict[int, Reply] = {}
    left: Iterator[tuple[int, bytes]] = iter(enumerate(requests))
    begin = perf_counter()

    async def worker(client: Client) -> None:
        for place, request in left:
            replies[place] = await client.ask(request)

    async with Client(port) as client:
        await asyncio.gather(*(worker(client) for _ in range(at_once)))
    return Load(perf_counter() - begin, [replies[place] for place in sorted(replies)])


async def open_(port: int, requests: Sequence[bytes], per_second: float, seed: int) -> Load:
    """Send each when it is due, whatever has been answered: a Poisson process.

    Times count from when a request was due, so that a generator that falls behind hides nothing.
    """
    generator, begin = random.Random(seed), perf_counter() + 0.05
    due, tasks = begin, []
    async with Client(port) as client, asyncio.TaskGroup() as group:
        for request in requests:
            due += generator.expovariate(per_second)
            await asyncio.sleep(max(0.0, due - perf_counter()))
            tasks.append(group.create_task(client.ask(request, due)))
        replies = [await task for task in tasks]
    return Load(max(reply.done for reply in replies) - begin, replies)


def quantiles(values: Sequence[float] | npt.NDArray[np.float64], name: str) -> dict[str, float]:
    """The p50, p95 and p99 of figures, under ``name_p50`` and so on."""
    found = np.percentile(values, QUANTILES) if len(values) else [float("nan")] * len(QUANTILES)
    return {
        f"{name}_p{quantile}": round(float(value), 2)
        for quantile, value in zip(QUANTILES, found, strict=True)
    }
