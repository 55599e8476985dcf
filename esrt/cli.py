"""Error convention of all commands: one line on stderr and a stable exit code."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from esrt.errors import EsrtError, printable


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn an `EsrtError` or an `OSError` into one line on stderr and an exit code.

    Raises:
        SystemExit: with the error's exit code; 2 for an `OSError`.
    """
    try:
        yield
    except EsrtError as error:
        print_line("error", str(error))
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        print_line("error", f"{path}{error.strerror or error}. Check the path and its permissions.")
        raise SystemExit(2) from None


def print_line(label: str, message: str) -> None:
    """Print ``label: message`` on stderr as one line, without control characters."""
    print(f"{label}: {printable(' '.join(message.split()))}", file=sys.stderr)
