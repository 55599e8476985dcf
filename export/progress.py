"""What an export is doing at the moment, for whoever shows it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LISTENER: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def report_progress(doing: str) -> None:
    """Say what begins now, in a few words: ``tracing``."""
    if listener := _LISTENER.get():
        listener(doing)


@contextmanager
def progress_listener(listener: Callable[[str], None]) -> Iterator[None]:
    """Call ``listener`` with each step inside the block."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
