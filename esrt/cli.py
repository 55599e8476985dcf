"""Conventions of all commands: plain help, ``--version``, one line for an error, exit codes."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, NoReturn, TextIO

import typer

import esrt
from esrt.errors import EsrtError, RequestError, printable


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"esrt {esrt.__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
]


def application(help: str) -> typer.Typer:
    """Create an application of several commands; without a command it prints its help."""
    app = plain_app()

    @app.callback(help=help, invoke_without_command=True)
    def options(context: typer.Context, version: VersionOption = False) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help(), err=True)
            raise typer.Exit(2)

    return app


def plain_app() -> typer.Typer:
    """Create a Typer application whose help is plain text of at most 80 columns, uncut."""
    return typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)


def run(
    command: typer.Typer | Callable[..., None], arguments: Sequence[str] | None = None
) -> NoReturn:
    """Run an application, or a function as a command; an error takes one line on stderr.

    Args:
        command: the application, or the function whose parameters are the options.
        arguments: the command line; by default that of the process.

    Raises:
        SystemExit: always, with the exit code.
    """
    if not isinstance(command, typer.Typer):
        app = plain_app()
        app.command()(command)
        command = app
    with exit_on_error():
        _check_standard_streams()
        try:
            code = command(arguments, standalone_mode=False)
            sys.stdout.flush()
        except typer.TyperException as error:
            # Pydantic's words, which typer passes on, are left out.
            cause = re.sub(r"Value error, |, unable to parse .*|\.$", "", error.format_message())
            stop = "" if cause.endswith("?") else "."
            raise RequestError(f"{cause}{stop}", "Add --help to see the options.") from error
    sys.exit(code or 0)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn an `EsrtError`, an `OSError` or a missing package into one line and an exit code.

    Raises:
        SystemExit: with the error's exit code; 2 for an `OSError` or a missing package; 1 without
            a line for a closed pipe.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        print_line(
            "error",
            f"The package {error.name} is not installed. Install the extra of this command in a"
            " clone: pip install '.[edge]', '.[cloud]' or '.[export]'.",
        )
        raise SystemExit(2) from None
    except EsrtError as error:
        print_line("error", str(error))
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if sys.stdout is not None:
            _discard_unwritable(sys.stdout)
        if isinstance(error, BrokenPipeError):  # as of `| head`
            raise SystemExit(1) from None
        place = error.filename or "Standard output or a file cannot be used"
        cause = f"{place}: {error.strerror or error}."
        print_line("error", f"{cause} Check the path, its permissions and the free space.")
        raise SystemExit(2) from None


def print_line(label: str, message: str) -> None:
    """Print ``label: message`` on stderr as one line, without control characters."""
    if sys.stderr is not None:  # `print` would take stdout instead
        with suppress(OSError):
            print(f"{label}: {printable(' '.join(message.split()))}", file=sys.stderr)
        _discard_unwritable(sys.stderr)


def _check_standard_streams() -> None:
    """Open closed streams, whose descriptors other files would get.

    Raises:
        EsrtError: standard output is closed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest descriptor that is free
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        raise EsrtError("Standard output is closed.", "Redirect it to a file, or to /dev/null.")


def _discard_unwritable(stream: TextIO) -> None:
    """Discard the output of a stream that cannot be flushed.

    Python would flush it again at its exit, and print a traceback.
    """
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
