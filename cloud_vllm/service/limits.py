"""How much a key may ask for, and how much the service takes on at all."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cloud_vllm.settings import Settings
from esrt.errors import Overloaded, TooManyRequests

# How soon a place may be free again; an answer takes about this long.
_PLACE_FREE_S = 1
_QUEUE_SHORTER_S = 2


class RateLimit:
    """A token bucket for each key.

    Args:
        per_second: how fast a bucket fills.
        burst: how much it holds.
        clock: seconds, monotonic.
    """

    def __init__(
        self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: str, amount: int) -> float:
        """Take so much from the key's bucket; returns the seconds to wait, 0 if it was there.

        A larger amount than a bucket holds is taken from a full one, which then owes the rest.
        """
        now = self._clock()
        level, since = self._buckets.get(key, (float(self._burst), now))
        level = min(float(self._burst), level + (now - since) * self._per_second)
        missing = min(amount, self._burst) - level
        # A sum of many small steps may fall short of a whole number by its rounding.
        if missing > 1e-9:
            self._buckets[key] = level, now
            return missing / self._per_second
        self._buckets[key] = level - amount, now
        return 0.0


class Limits:
    """Admits answers, each of which takes a place until it has been sent.

    Args:
        settings: the limits.
        clock: seconds, monotonic.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = RateLimit(settings.key_rate, settings.key_burst, clock)
        self._at_once = settings.key_max_concurrency
        self._places = settings.max_concurrent + settings.queue_size
        self._taken: Counter[str] = Counter()
        self.inside = 0

    @contextmanager
    def admit(self, key: str | None, answers: int = 1) -> Iterator[None]:
        """Hold a place for each answer to one request.

        Args:
            key: who asks; ``None`` where no keys are in use, which leaves the common limit.
            answers: how many the request asks for.

        Raises:
            TooManyRequests: the key asks too fast, or for too many answers at once.
            Overloaded: all places are taken.
        """
        if key is not None and self._taken[key] and self._taken[key] + answers > self._at_once:
            raise TooManyRequests(
                f"This key has {self._taken[key]} answers under way and may have {self._at_once}.",
                "Wait for an answer before asking for the next.",
                _PLACE_FREE_S,
            )
        if self.inside and self.inside + answers > self._places:
            raise Overloaded(
                "The service has as much to do as it takes on.",
                "Send the request again after the time in Retry-After.",
                _QUEUE_SHORTER_S,
            )
        if key is not None and (wait := self._rate.take(key, answers)):
            raise TooManyRequests(
                "This key asks faster than it may.",
                "Send the request again after the time in Retry-After.",
                math.ceil(wait),
            )
        self.inside += answers
        if key is not None:
            self._taken[key] += answers
        try:
            yield
        finally:
            self.inside -= answers
            if key is not None:
                self._taken[key] -= answers
                if not self._taken[key]:
                    del self._taken[key]
