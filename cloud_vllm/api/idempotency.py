"""Answers kept for a few minutes under keys that clients choose, so that a retry costs nothing.

They are in this process's memory and nowhere else. A request that repeats one under way waits for
its answer; where that fails, the next of those that wait is decoded in its place.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field

from cloud_vllm.schemas import Translation
from cloud_vllm.service.translation import Event, final_text_events
from cloud_vllm.settings import Settings
from esrt.errors import DeadlineExceeded, IdempotencyKeyReused

_Name = tuple[str | None, str]


@dataclass(eq=False)
class _Entry:
    name: _Name
    digest: bytes
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    answers: Sequence[Translation] | None = None
    size: int = 0
    expires: float = 0.0


class AnswerStore:
    """The answers to requests that carry an idempotency key.

    Args:
        settings: for how long they are kept, and in how many bytes.
        clock: seconds, monotonic.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = settings.idempotency_s
        self._capacity = settings.idempotency_bytes
        self._deadline = settings.deadline_s
        self._clock = clock
        self._under_way: dict[_Name, _Entry] = {}
        # In the order of their expiry.
        self._kept: OrderedDict[_Name, _Entry] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._under_way) + len(self._kept)

    async def claim(
        self, owner: str | None, key: str, request: Sequence[bytes], cleanup: ExitStack
    ) -> "Claim":
        """Find the answer to a request, waiting for one that is under way, or take it on.

        Args:
            owner: whose key it is; another owner's same key is another key.
            key: what the client calls the request.
            request: what makes it the same request.
            cleanup: where the claim is given up, if it has not been fulfilled by then.

        Raises:
            IdempotencyKeyReused: the key belongs to another request.
            DeadlineExceeded: the request under way takes too long.
        """
        name, digest = (owner, key), _digest(request)
        self.sweep()
        try:
            async with asyncio.timeout(self._deadline):
                while entry := self._kept.get(name) or self._under_way.get(name):
                    if entry.digest != digest:
                        raise IdempotencyKeyReused(
                            "This Idempotency-Key was used for another request.",
                            "Take a new key for each request, and the same one for its retries.",
                        )
                    if entry.answers is not None:
                        return Claim(self, entry)
                    await entry.settled.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                "The request with this Idempotency-Key is still under way.", "Send it again later."
            ) from None
        entry = self._under_way[name] = _Entry(name, digest)
        cleanup.callback(self._give_up, entry)
        return Claim(self, entry)

    def keep(self, entry: _Entry, answers: Sequence[Translation]) -> None:
        """Keep an answer, and hand it to those that wait for it."""
        entry.answers = answers
        entry.size = sum(len(one.model_dump_json()) for one in answers)
        entry.expires = self._clock() + self._seconds
        self.size += entry.size
        self._under_way.pop(entry.name, None)
        self._kept[entry.name] = entry
        entry.settled.set()
        self.sweep()

    def sweep(self) -> None:
        """Drop what has expired, and the oldest answers where there are too many."""
        now = self._clock()
        while self._kept:
            name, entry = next(iter(self._kept.items()))
            if entry.expires > now and self.size <= self._capacity:
                break
            self.size -= entry.size
            del self._kept[name]

    def clear(self) -> None:
        """Drop everything."""
        self._under_way.clear()
        self._kept.clear()
        self.size = 0

    def _give_up(self, entry: _Entry) -> None:
        if entry.answers is None:
            if self._under_way.get(entry.name) is entry:
                del self._under_way[entry.name]
            entry.settled.set()


class Claim:
    """A request's place in the store: an answer that is there, or the duty to give one."""

    def __init__(self, store: AnswerStore, entry: _Entry) -> None:
        self._store, self._entry = store, entry

    @property
    def answers(self) -> Sequence[Translation] | None:
        """The answer, where there is one."""
        return self._entry.answers

    async def fulfil(
        self, stream: AsyncGenerator[Event, None], expected: int
    ) -> AsyncGenerator[Event, None]:
        """The same events; the answers among them are kept once as many have come."""
        found = list[Translation]()
        async with aclosing(stream):
            async for event in stream:
                if isinstance(event[1], Translation):
                    found.append(event[1])
                if len(found) == expected and self._entry.answers is None:
                    # Before it is sent: a client that has lost the connection will ask again.
                    self._store.keep(self._entry, found)
                yield event


async def replay(answers: Sequence[Translation], *, several: bool) -> AsyncGenerator[Event, None]:
    """The events of answers that are there."""
    for answer in answers:
        for event in final_text_events(answer, several=several):
            yield event
        yield "done", answer


def _digest(request: Sequence[bytes]) -> bytes:
    whole = hashlib.sha256()
    for part in request:
        whole.update(len(part).to_bytes(8, "little"))
        whole.update(part)
    return whole.digest()
