"""The whole path on one machine: starts the cloud side, translates a file through it, stops it.

``make demo`` runs this on a bundled clip. The gateway is a process of its own on loopback, as it
would be on another machine; only a feature packet goes to it.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from edge_runtime.audio import read_audio
from esrt.errors import ArtifactError, EsrtError, ServerError
from esrt.languages import direction
from esrt.manifest import read_manifest

ARTIFACT = Path("build/artifacts/esrt-nano-onnx-int8")
GATEWAY_LOG = Path("build/gateway.log")
READY_SECONDS = 300

console = Console(stderr=True, highlight=False)


@contextmanager
def gateway(engine: str) -> Iterator[str]:
    """A gateway process on a free port of loopback; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    GATEWAY_LOG.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "cloud_vllm", "--engine", engine, "--port", str(port)]
    with GATEWAY_LOG.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(server: str) -> None:
    """Poll ``/readyz``.

    Raises:
        ServerError: the gateway ended, or did not become ready in time.
    """
    deadline = time.monotonic() + READY_SECONDS
    started = False
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{server}/readyz").is_success:
                return
            started = True
        except httpx.TransportError as error:
            if started:
                raise ServerError("The gateway ended early.", f"See {GATEWAY_LOG}.") from error
        time.sleep(0.2)
    raise ServerError(f"No gateway after {READY_SECONDS} seconds.", f"See {GATEWAY_LOG}.")


def fingerprint_of_artifact() -> str | None:
    """The artifact's fingerprint, or ``None`` where there is no sound artifact."""
    try:
        return read_manifest(ARTIFACT).fingerprint
    except ArtifactError:
        return None


def export() -> None:
    """Export the bundled model to int8 ONNX."""
    subprocess.run([sys.executable, "export/to_onnx.py", "--out", str(ARTIFACT)], check=True)


def main(
    file: Annotated[Path, typer.Argument(help="Audio in any common format.")],
    source: Annotated[str, typer.Option("--from", help="Spoken language.")],
    target: Annotated[str, typer.Option("--to", help="Language to write.")],
    engine: Annotated[str, typer.Option(help="vllm or transformers.")] = "vllm",
) -> None:
    """Translate a file, phone side and cloud side on this machine."""
    file = file.resolve()
    os.chdir(Path(__file__).parent)
    try:
        # Before the engine loads for half a minute.
        direction(source, target)
        read_audio(file)
        with gateway(engine) as server:
            if fingerprint_of_artifact() is None:
                export()
            with console.status(f"waiting for the {engine} engine to load"):
                wait_until_ready(server)
            served = httpx.get(f"{server}/v1/models").json()["models"][0]["fingerprint"]
            if fingerprint_of_artifact() != served:
                export()
            command = [sys.executable, "-m", "edge_runtime", "translate", str(file)]
            command += ["--from", source, "--to", target]
            command += ["--server", server, "--artifact", str(ARTIFACT)]
            code = subprocess.run(command, check=False).returncode
    except EsrtError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)
