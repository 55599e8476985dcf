"""Answers kept for a few minutes under an Idempotency-Key, so that a retry costs no decoding.

Answers exist in the memory of this process only. A repetition of a request under way waits for the
answer. If that request fails, the next waiting request is decoded instead.
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

# The owner and the Idempotency-Key.
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
    """The answers to requests with an Idempotency-Key.

    Args:
        settings: time to live, and capacity in bytes.
        clock: monotonic clock in seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = settings.idempotency_s
        self._capacity = settings.idempotency_bytes
        self._deadline = settings.deadline_s
        self._clock = clock
        self._under_way: dict[_Name, _Entry] = {}
        # In the order of expiry.
        self._answers: OrderedDict[_Name, _Entry] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._under_way) + len(self._answers)

    async def claim(
        self, owner: str | None, key: str, request: Sequence[bytes], cleanup: ExitStack
    ) -> "Claim":
        """Find the answer to a request, or claim the request; wait for a claim under way.

        Args:
            owner: id of the API key; each owner has separate idempotency keys.
            key: the client's Idempotency-Key.
            request: the content that two equal requests share.
            cleanup: releases the claim at its exit, if there is no answer by then.

        Raises:
            IdempotencyKeyReused: the key belongs to a different request.
            DeadlineExceeded: the claim under way takes too long.
        """
        name, digest = (owner, key), _digest(request)
        self.sweep()
        try:
            async with asyncio.timeout(self._deadline):
                while entry := self._answers.get(name) or self._under_way.get(name):
                    if entry.digest != digest:
                        raise IdempotencyKeyReused(
                            "This Idempotency-Key was used for another request.",
                            "Use a new key for each request, and the same key for its retries.",
                        )
                    if entry.answers is not None:
                        return Claim(self, entry)
                    await entry.settled.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                "The request with this Idempotency-Key is still in progress.",
                "Send it again later.",
            ) from None
        entry = self._under_way[name] = _Entry(name, digest)
        cleanup.callback(self._release, entry)
        return Claim(self, entry)

    def put(self, entry: _Entry, answers: Sequence[Translation]) -> None:
        """Keep an answer, and wake the requests that wait for it."""
        entry.answers = answers
        entry.size = sum(len(answer.model_dump_json()) for answer in answers)
        entry.expires = self._clock() + self._seconds
        self.size += entry.size
        self._under_way.pop(entry.name, None)
        self._answers[entry.name] = entry
        entry.settled.set()
        self.sweep()

    def sweep(self) -> None:
        """Drop expired answers, and the oldest answers beyond the capacity."""
        now = self._clock()
        while self._answers:
            name, entry = next(iter(self._answers.items()))
            if entry.expires > now and self.size <= self._capacity:
                break
            self.size -= entry.size
            del self._answers[name]

    def clear(self) -> None:
        """Drop all answers."""
        self._under_way.clear()
        self._answers.clear()
        self.size = 0

    def _release(self, entry: _Entry) -> None:
        if entry.answers is None:
            if self._under_way.get(entry.name) is entry:
                del self._under_way[entry.name]
            entry.settled.set()


class Claim:
    """The result of a claim: an existing answer, or the task to decode one."""

    def __init__(self, store: AnswerStore, entry: _Entry) -> None:
        self._store, self._entry = store, entry

    @property
    def answers(self) -> Sequence[Translation] | None:
        """The existing answer; ``None`` if the request must be decoded."""
        return self._entry.answers

    async def record_answers(
        self, stream: AsyncGenerator[Event, None], expected: int
    ) -> AsyncGenerator[Event, None]:
        """Pass events on, and keep the answers among them once all have arrived."""
        answers = list[Translation]()
        async with aclosing(stream):
            async for event in stream:
                if isinstance(event[1], Translation):
                    answers.append(event[1])
                if len(answers) == expected and self._entry.answers is None:
                    # Before the answer is sent: a client that loses the connection will retry.
                    self._store.put(self._entry, answers)
                yield event


async def replay(
    answers: Sequence[Translation], *, multi_target: bool
) -> AsyncGenerator[Event, None]:
    """The events of existing answers."""
    for answer in answers:
        for event in final_text_events(answer, multi_target=multi_target):
            yield event
        yield "done", answer


def _digest(request: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256()
    for part in request:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
