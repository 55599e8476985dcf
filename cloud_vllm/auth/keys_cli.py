"""Commands that create, list and revoke API keys: ``python -m cloud_vllm keys``."""

from pathlib import Path
from typing import Annotated

import typer

from cloud_vllm.auth import keys
from esrt.cli import application, exit_on_error

app = application("Create, list and revoke API keys.")

KeyFile = Annotated[
    Path,
    typer.Option(
        "--key-file",
        metavar="FILE",
        envvar="ESRT_KEY_FILE",
        help="File with the hashes of the keys.",
    ),
]


@app.command()
def create(
    key_file: KeyFile,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Owner of the key, shown by `keys list`.")
    ],
    scope: Annotated[
        keys.Scope, typer.Option(help="Permission: translate, or read /metrics.")
    ] = keys.Scope.TRANSLATE,
) -> None:
    """Create a key and print it.

    The key is stored nowhere and cannot be shown again.
    """
    with exit_on_error():
        key = keys.create(key_file, name, scope)
        key_id = keys.public_id(key)
        use = (
            "Use it on the device: export ESRT_API_KEY=KEY"
            if scope is keys.Scope.TRANSLATE
            else "Use it in the header of the monitor's requests: Authorization: Bearer KEY"
        )
        typer.echo(
            f"Created the key {key_id} with the scope {scope} in {key_file}.\n"
            "Store the following line safely: the key file holds only its hash.\n"
            f"{use}",
            err=True,
        )
        try:
            typer.echo(key)
        except OSError:  # nobody has seen the key
            keys.revoke(key_file, key_id)
            raise


@app.command(name="list")
def show(key_file: KeyFile) -> None:
    """List id, scope, creation date and name of each key."""
    with exit_on_error():
        for entry in keys.read(key_file):
            name = "".join(c if c.isprintable() else "?" for c in entry.name)
            typer.echo(f"{entry.id}  {entry.scope:9}  {entry.created[:10]}  {name}")


@app.command()
def revoke(
    key_file: KeyFile,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, from `keys list`.")],
) -> None:
    """Revoke a key. A running gateway rejects it at once."""
    with exit_on_error():
        entry = keys.revoke(key_file, key_id)
        typer.echo(f"Revoked {entry.id}.")
