"""``python -m cloud_vllm`` runs the gateway; ``python -m cloud_vllm keys`` manages API keys."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from cloud_vllm import env_defaults
from cloud_vllm.auth import keys_cli
from cloud_vllm.settings import Settings
from cloud_vllm.telemetry import logs
from esrt.cli import exit_on_error
from esrt.errors import RequestError

app = typer.Typer(add_completion=False)
app.add_typer(keys_cli.app, name="keys")


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint folder.")] = None,
    engine: Annotated[str | None, typer.Option(help="vllm or transformers.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="API keys' hashes; without it, everyone is let in.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file, for HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file, for HTTPS.")] = None,
    allow_anonymous: Annotated[
        bool | None,
        typer.Option("--allow-anonymous", help="Listen beyond this machine without keys."),
    ] = None,
) -> None:
    """Serve a checkpoint's decoder over HTTP.

    What is not given comes from the environment (ESRT_CHECKPOINT, ESRT_PORT, and so on) or the
    defaults in cloud_vllm/settings.py.
    """
    if context.invoked_subcommand is not None:
        return
    given = {name: context.params[name] for name in context.params if name != "context"}
    # uvicorn raises the signal again once it has shut down: that is success, so it ends as such,
    # and with the interpreter's own clean-up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    env_defaults.prepare()
    with exit_on_error():
        _serve(_settings({name: value for name, value in given.items() if value is not None}))


def _settings(given: dict[str, object]) -> Settings:
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        causes = "; ".join(
            ": ".join([*map(str, item["loc"][:1]), item["msg"]]) for item in error.errors()
        )
        raise RequestError(f"A setting is not valid: {causes}.", "See --help.") from error


def _serve(settings: Settings) -> None:
    # Imported after the environment is set, and so that --help does not wait for torch.
    from cloud_vllm import listener
    from cloud_vllm.api.app import create_app

    listener.check_exposure(settings)
    logs.configure(settings.log_format)
    config = listener.configure(create_app(settings), settings)
    with listener.listen(settings) as socket:
        host, port = socket.getsockname()[:2]
        scheme = "https" if settings.tls_certificate else "http"
        typer.echo(f"Listening on {scheme}://{host}:{port}, engine {settings.engine}.")
        listener.Server(config).run(sockets=[socket])


if __name__ == "__main__":
    app()
