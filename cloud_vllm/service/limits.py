"""Rate and concurrency limits of an API key and of the whole gateway."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cloud_vllm.settings import Settings
from esrt.errors import Overloaded, TooManyRequests

# Retry-After of rejected requests; an answer takes about a second.
_KEY_RETRY_S = 1
_QUEUE_RETRY_S = 2


class RateLimit:
    """A token bucket for each API key.

    Args:
        per_second: tokens added to a bucket per second.
        burst: capacity of a bucket.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: str, amount: int) -> float:
        """Take an amount from a key's bucket; returns the seconds to wait, 0 on success.

        An amount beyond the capacity is taken from a full bucket, whose level becomes negative.
        """
        now = self._clock()
        level, since = self._buckets.get(key, (float(self._burst), now))
        level = min(float(self._burst), level + (now - since) * self._per_second)
        missing = min(amount, self._burst) - level
        # The sum of many small steps may miss a whole number by rounding errors.
        if missing > 1e-9:
            self._buckets[key] = level, now
            return missing / self._per_second
        self._buckets[key] = level - amount, now
        return 0.0


class Limits:
    """Admission control: each admitted answer occupies a slot until it has been sent.

    Args:
        settings: the limits of a key and of the gateway.
        clock: monotonic clock in seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = RateLimit(settings.key_rate, settings.key_burst, clock)
        self._key_slots = settings.key_max_concurrency
        self._slots = settings.max_concurrent + settings.queue_size
        self._key_answers: Counter[str] = Counter()
        self.admitted = 0

    @contextmanager
    def admit(self, key: str | None, answers: int = 1) -> Iterator[None]:
        """Occupy a slot for each answer of one request.

        Args:
            key: id of the API key; with ``None`` only the limit of the gateway applies.
            answers: number of answers that the request needs.

        Raises:
            TooManyRequests: the key exceeds its rate or its concurrency.
            Overloaded: all slots are occupied.
        """
        if (
            key is not None
            and self._key_answers[key]
            and self._key_answers[key] + answers > self._key_slots
        ):
            raise TooManyRequests(
                f"This key has {self._key_answers[key]} answers in progress; its limit is"
                f" {self._key_slots}.",
                "Wait for an answer before the next request.",
                _KEY_RETRY_S,
            )
        if self.admitted and self.admitted + answers > self._slots:
            raise Overloaded(
                "The gateway is at its limit of accepted requests.",
                "Send the request again after the time in Retry-After.",
                _QUEUE_RETRY_S,
            )
        if key is not None and (wait := self._rate.take(key, answers)):
            raise TooManyRequests(
                "This key exceeds its rate limit.",
                "Send the request again after the time in Retry-After.",
                math.ceil(wait),
            )
        self.admitted += answers
        if key is not None:
            self._key_answers[key] += answers
        try:
            yield
        finally:
            self.admitted -= answers
            if key is not None:
                self._key_answers[key] -= answers
                if not self._key_answers[key]:
                    del self._key_answers[key]
