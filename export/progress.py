"""Progress of an export: the current step, passed to a listener."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LISTENER: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def report_progress(step: str) -> None:
    """Announce the current step, for example ``tracing``."""
    if listener := _LISTENER.get():
        listener(step)


@contextmanager
def progress_listener(listener: Callable[[str], None]) -> Iterator[None]:
    """Call ``listener`` with each step inside the block."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
