"""How this project's commands end when something is wrong: one line, and a stable exit code."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from esrt.errors import EsrtError, printable


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn a deliberate error, or one of the file system, into a line on stderr and an exit.

    Raises:
        SystemExit: with the error's exit code; 2 for the file system.
    """
    try:
        yield
    except EsrtError as error:
        message, code = str(error), error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        message, code = f"{where}{error.strerror or error}. Check the path and its rights.", 2
    else:
        return
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    raise SystemExit(code)
