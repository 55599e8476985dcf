"""How a command ends when something was wrong: one line, and the error's exit code."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from esrt.errors import EsrtError


@contextmanager
def reported() -> Iterator[None]:
    """Turn a deliberate error into a line on stderr and an exit code."""
    try:
        yield
    except EsrtError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
