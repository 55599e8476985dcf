"""Output of native libraries on stderr, which Python's logging does not reach."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def discard_native_log() -> Iterator[None]:
    """Discard ExecuTorch's log, which has no levels, instead of mixing it with our output."""
    with Path(os.devnull).open("wb") as devnull, _stderr_to(devnull.fileno()):
        yield


@contextmanager
def captured_native_log() -> Iterator[Callable[[], bytes]]:
    """Keep the output of native libraries off stderr; yield a function that reads it.

    The function returns at most 64 KiB, which a pipe holds. More is discarded.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)  # a library must not wait for a reader

    def read() -> bytes:
        with suppress(BlockingIOError):
            return os.read(reader, 65_536)
        return b""

    try:
        with _stderr_to(writer):
            yield read
    finally:
        os.close(reader)
        os.close(writer)


@contextmanager
def _stderr_to(descriptor: int) -> Iterator[None]:
    if sys.stderr is None:  # a process without stderr
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
