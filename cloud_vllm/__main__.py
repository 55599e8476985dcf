"""``python -m cloud_vllm`` runs the gateway; ``python -m cloud_vllm keys`` manages API keys."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from cloud_vllm import env_defaults, listener
from cloud_vllm.auth import keys, keys_cli
from cloud_vllm.settings import Settings
from cloud_vllm.telemetry import logs
from esrt.cli import VersionOption, exit_on_error, plain_app, run
from esrt.errors import RequestError

app = plain_app()
app.add_typer(keys_cli.app, name="keys")


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Checkpoint folder.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="ENGINE", help="vllm or transformers.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Port; 0 takes a free port.")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with the hashes of API keys; without it, no key is needed."
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate chain for HTTPS, PEM.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private key of the certificate, PEM.")
    ] = None,
    allow_anonymous: Annotated[
        bool | None,
        typer.Option("--allow-anonymous", help="Listen beyond this machine without API keys."),
    ] = None,
    version: VersionOption = False,
) -> None:
    """Serve the decoder of a checkpoint over HTTP.

    Options that are not given come from the environment (ESRT_CHECKPOINT, ESRT_PORT, and so on)
    or from the defaults in cloud_vllm/settings.py.
    """
    if context.invoked_subcommand is not None:
        return
    options = {
        name: value
        for name, value in context.params.items()
        if name not in ("context", "version") and value is not None
    }
    # uvicorn raises the signal again after its shutdown. These handlers then end the process with
    # success, and with the interpreter's clean-up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    env_defaults.prepare()
    with exit_on_error():
        _serve(_read_settings(options))


def _read_settings(options: dict[str, object]) -> Settings:
    try:
        return Settings(**options)  # type: ignore[arg-type]
    except ValidationError as error:
        causes = "; ".join(
            ": ".join([*map(str, item["loc"][:1]), item["msg"]]) for item in error.errors()
        )
        raise RequestError(f"A setting is not valid: {causes}.", "See --help.") from error


def _serve(settings: Settings) -> None:
    logs.configure(settings.log_format)
    listener.check_exposure(settings)
    if settings.key_file:
        keys.read(settings.key_file)
    with listener.listen(settings) as socket:
        # Imported after the environment is set and the settings are checked: torch takes seconds.
        import uvicorn

        from cloud_vllm.api.app import create_app
        from cloud_vllm.server import configure

        server = uvicorn.Server(configure(create_app(settings), settings))
        host, port = socket.getsockname()[:2]
        scheme = "https" if settings.tls_certificate else "http"
        typer.echo(f"Listening on {scheme}://{host}:{port}, engine {settings.engine}.")
        server.run(sockets=[socket])


def main() -> None:
    """Run the command line and exit."""
    run(app)


if __name__ == "__main__":
    main()
