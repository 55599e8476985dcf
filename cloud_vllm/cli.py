"""Command line of the gateway: serve, list the settings, manage API keys."""

import logging
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloud_vllm import env_defaults, listener, settings_reference
from cloud_vllm.auth import keys, keys_cli
from cloud_vllm.settings import Settings
from cloud_vllm.settings_reader import read_settings, warn_of_unknown_variables
from cloud_vllm.telemetry import logs
from esrt.cli import VersionOption, exit_on_error, plain_app, run
from esrt.errors import CheckpointError

if TYPE_CHECKING:
    # Not imported at run time: it imports torch, which takes seconds.
    from esrt.checkpoint import Checkpoint

_ENGINES = {"vllm": "vLLM", "transformers": "transformers"}

_log = logging.getLogger("cloud_vllm")

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
        str | None, typer.Option(metavar="PORT", help="Port; 0 takes a free port.")
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

    Options that are not given come from the environment (ESRT_CHECKPOINT, ESRT_PORT, and so on).
    `python -m cloud_vllm settings` lists all settings with their defaults, as does
    docs/settings.md.
    """
    if context.invoked_subcommand is not None:
        return
    options = {
        name: value
        for name, value in context.params.items()
        if name not in ("context", "version") and value is not None
    }
    with exit_on_error():
        settings = read_settings(options, lambda field: f"--{field.replace('_', '-')}")
        logs.configure(settings.log_format)
        with logs.logged_output():
            _serve(settings)


@app.command(name="settings")
def show_settings(
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the text of docs/settings.md.")
    ] = False,
) -> None:
    """List the settings with their variables and defaults."""
    reference = settings_reference.markdown() if as_markdown else settings_reference.text()
    typer.echo(reference, nl=False)


def _serve(settings: Settings) -> None:
    begin = time.monotonic()
    _exit_on_signals(announce=True)
    env_defaults.prepare()
    warn_of_unknown_variables()
    listener.check_exposure(settings)
    if settings.engine == "vllm":
        env_defaults.check()
    if settings.key_file:
        keys.read(settings.key_file)
    if not settings.checkpoint.is_dir():
        raise CheckpointError(
            f"No checkpoint in {settings.checkpoint}: it is no folder.",
            "Name a checkpoint's folder, like models/esrt-nano.",
        )
    with listener.listen(settings) as socket:
        address = listener.address(socket, settings)
        _log.info(
            "Loading %s with %s. Listening on %s.",
            settings.checkpoint,
            _ENGINES[settings.engine],
            address,
        )
        # Imported after the environment is set and the settings are checked: torch takes seconds.
        from cloud_vllm.api.app import create_app
        from cloud_vllm.server import Server, configure

        def announce(checkpoint: "Checkpoint") -> None:
            _log.info("%s", _ready(checkpoint, settings, address, time.monotonic() - begin))

        server = Server(configure(create_app(settings, on_ready=announce), settings))
        # uvicorn handles the signals, and raises them again after its shutdown.
        _exit_on_signals(announce=False)
        server.run(sockets=[socket])


def _exit_on_signals(*, announce: bool) -> None:
    """End the process with success on SIGINT and SIGTERM.

    The app is not open yet, or closed already. The interpreter's own clean-up is left out: it takes
    seconds with these libraries, and Triton, which vLLM imports, prints dozens of lines in it.
    """

    def stop(number: int, frame: Any) -> None:
        if announce:
            _log.info("Stopping.")
        os._exit(0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def _ready(checkpoint: "Checkpoint", settings: Settings, address: str, seconds: float) -> str:
    config = checkpoint.config
    source, target = _example_direction(config.languages)
    key = "ESRT_API_KEY=KEY " if settings.key_file else ""
    return (
        f"Ready after {seconds:.0f} s: {config.name}, {len(config.languages)} languages, {address}."
        f" Try: {key}python -m edge_runtime translate FILE --from {source} --to {target}"
        f" --server {address}"
    )


def _example_direction(languages: Sequence[str]) -> Sequence[str]:
    """English to German if the model was trained for both, else its first two languages."""
    example = ("eng", "deu")
    return example if set(example) <= set(languages) else languages[:2]


def main() -> None:
    """Run the command line and exit."""
    run(app)
