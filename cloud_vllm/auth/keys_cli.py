"""The commands that make, show and revoke API keys: ``python -m cloud_vllm keys``."""

from pathlib import Path
from typing import Annotated

import typer

from cloud_vllm.auth import keys
from esrt.cli import exit_on_error

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)

KeyFile = Annotated[
    Path,
    typer.Option("--key-file", envvar="ESRT_KEY_FILE", help="File with the keys' hashes."),
]


@app.command()
def create(
    key_file: KeyFile,
    name: Annotated[str, typer.Option(help="Whose key it is, for the list.")],
    scope: Annotated[keys.Scope, typer.Option(help="What it is for.")] = keys.Scope.TRANSLATE,
) -> None:
    """Create a key and print it: it is shown this once and stored nowhere."""
    with exit_on_error():
        key = keys.create(key_file, name, scope)
        typer.echo("Keep this key; only its hash is stored.", err=True)
        typer.echo(key)


@app.command(name="list")
def show(key_file: KeyFile) -> None:
    """List the keys: id, scope, day of creation, name."""
    with exit_on_error():
        for entry in keys.read(key_file):
            name = "".join(c if c.isprintable() else "?" for c in entry.name)
            typer.echo(f"{entry.id}  {entry.scope:9}  {entry.created[:10]}  {name}")


@app.command()
def revoke(
    key_file: KeyFile,
    identity: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")],
) -> None:
    """Revoke a key; a running gateway refuses it at once."""
    with exit_on_error():
        entry = keys.revoke(key_file, identity)
        typer.echo(f"Revoked {entry.id}.")
