"""Conventions of all commands: plain help, ``--version``, one line for an error, exit codes."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, NoReturn

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
        try:
            code = command(arguments, standalone_mode=False)
        except typer.TyperException as error:
            # Pydantic's words, which typer passes on, are left out.
            cause = re.sub(r"Value error, |, unable to parse .*|\.$", "", error.format_message())
            raise RequestError(f"{cause}.", "Add --help to see the options.") from error
    sys.exit(code or 0)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn an `EsrtError`, an `OSError` or a missing package into one line and an exit code.

    Raises:
        SystemExit: with the error's exit code; 2 for an `OSError` or a missing package.
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
        path = f"{error.filename}: " if error.filename else ""
        print_line("error", f"{path}{error.strerror or error}. Check the path and its permissions.")
        raise SystemExit(2) from None


def print_line(label: str, message: str) -> None:
    """Print ``label: message`` on stderr as one line, without control characters."""
    print(f"{label}: {printable(' '.join(message.split()))}", file=sys.stderr)
