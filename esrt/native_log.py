"""Output of native libraries on stderr, which Python's logging does not reach."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def discard_native_log() -> Iterator[None]:
    """Discard ExecuTorch's log, which has no levels, instead of mixing it with our output."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with Path(os.devnull).open("wb") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
