"""The command that runs the gateway: ``python -m cloud_vllm``."""

import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from cloud_vllm import environment
from cloud_vllm.settings import Settings
from esrt.errors import EsrtError, RequestError

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint folder.")] = None,
    engine: Annotated[str | None, typer.Option(help="vllm or transformers.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
) -> None:
    """Serve a checkpoint's decoder over HTTP.

    What is not given comes from the environment (ESRT_CHECKPOINT, ESRT_PORT, and so on) or the
    defaults in cloud_vllm/settings.py.
    """
    given = {"checkpoint": checkpoint, "engine": engine, "host": host, "port": port}
    # uvicorn raises the signal again once it has shut down: that is success, so it ends as such,
    # and with the interpreter's own clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    environment.prepare()
    try:
        _serve(_settings({name: value for name, value in given.items() if value is not None}))
    except EsrtError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _settings(given: dict[str, object]) -> Settings:
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        causes = "; ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors())
        raise RequestError(f"A setting is not valid: {causes}.", "See --help.") from error


def _serve(settings: Settings) -> None:
    # Imported after the environment is set, and so that --help does not wait for torch.
    import uvicorn

    from cloud_vllm.gateway import create_app

    gateway = create_app(settings)
    with _listen(settings) as listener:
        config = uvicorn.Config(
            gateway, timeout_graceful_shutdown=settings.shutdown_s, access_log=False
        )
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        host, port = listener.getsockname()[:2]
        typer.echo(f"Listening on http://{host}:{port}, engine {settings.engine}.")
        uvicorn.Server(config).run(sockets=[listener])


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise RequestError(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}.",
            "Choose another --port, or end what listens there.",
        ) from error


if __name__ == "__main__":
    app()
