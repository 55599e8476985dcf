"""The whole path on one machine: starts the cloud side, translates a file through it, stops it.

``make demo`` runs this on a bundled clip. The gateway is a process of its own on loopback, as it
would be on another machine; only a feature packet goes to it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from edge_runtime.audio import read_audio
from esrt.bundled import CHECKPOINT
from esrt.cli import exit_on_error
from esrt.config import ModelConfig
from esrt.errors import ArtifactError, ServerError
from esrt.languages import check_trained, direction
from esrt.manifest import read_manifest, sha256
from esrt.wire import CODEC_TABLES_FILE

ARTIFACT = Path("build/artifacts/esrt-nano-onnx-int8")
GATEWAY_LOG = Path("build/gateway.log")
GUARDS = frozenset({"ESRT_KEY_FILE", "ESRT_TLS_CERTIFICATE", "ESRT_TLS_KEY"})
READY_SECONDS = 300
STOP_SECONDS = 60


class Engine(StrEnum):
    """What decodes; transformers is the slow reference."""

    VLLM = "vllm"
    TRANSFORMERS = "transformers"


@contextmanager
def gateway(engine: Engine) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway process on a free port of loopback, which its log names."""
    GATEWAY_LOG.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "cloud_vllm", "--engine", engine, "--port", "0"]
    # Keys and TLS are for gateways that others reach.
    environment = {name: value for name, value in os.environ.items() if name not in GUARDS}
    with GATEWAY_LOG.open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until_ready(process: subprocess.Popen[bytes], http: httpx.Client) -> str:
    """Poll ``/readyz``; the gateway's address.

    Raises:
        ServerError: the gateway ended, or did not become ready in time.
    """
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError("The gateway ended early.", f"See {GATEWAY_LOG}.")
        words = GATEWAY_LOG.read_text("utf-8", "replace").split()
        server = next((word.rstrip(",") for word in words if word.startswith("http://")), None)
        try:
            if server and http.get(f"{server}/readyz").is_success:
                return server
        except httpx.TransportError:
            pass  # not listening yet, or too busy loading to answer
        time.sleep(0.2)
    raise ServerError(f"No gateway after {READY_SECONDS} seconds.", f"See {GATEWAY_LOG}.")


def artifact_fits(served: str | None = None) -> bool:
    """Whether there is a sound artifact with the codec's statistics of the checkpoint.

    With ``served`` its fingerprint must be that, too.
    """
    try:
        manifest = read_manifest(ARTIFACT)
    except ArtifactError:
        return False
    codec_tables = sha256(CHECKPOINT / CODEC_TABLES_FILE)
    return manifest.files.get(CODEC_TABLES_FILE) == codec_tables and served in (
        None,
        manifest.fingerprint,
    )


def export() -> None:
    """Export the bundled model to int8 ONNX."""
    command = [sys.executable, "export/to_onnx.py", "--out", str(ARTIFACT)]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(code)  # the export has said why


def check(file: Path, source: str, target: str) -> None:
    """Refuse what cannot be translated, before the engine loads for half a minute.

    Raises:
        AudioError: the file is no usable speech.
        LanguageError: the model has no such direction.
    """
    config = ModelConfig.from_dict(json.loads((CHECKPOINT / "config.json").read_text()))
    check_trained(config.name, config.languages, direction(source, target))
    read_audio(file)


def main(
    file: Annotated[Path, typer.Argument(help="Audio in any common format.")],
    source: Annotated[str, typer.Option("--from", help="Spoken language.")],
    target: Annotated[str, typer.Option("--to", help="Language to write.")],
    engine: Annotated[Engine, typer.Option(help="What decodes.")] = Engine.VLLM,
) -> None:
    """Translate a file, phone side and cloud side on this machine."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the gateway is stopped, too
    file = file.resolve()
    os.chdir(Path(__file__).parent)
    check(file, source, target)
    with gateway(engine) as process, httpx.Client(trust_env=False) as http:
        if not artifact_fits():
            export()
        console = Console(stderr=True, highlight=False)
        with console.status(f"waiting for the {engine} engine to load"):
            server = wait_until_ready(process, http)
        served = http.get(f"{server}/v1/models").json()["models"][0]["fingerprint"]
        if not artifact_fits(served):
            export()
        command = [sys.executable, "-m", "edge_runtime", "translate", str(file)]
        command += ["--from", source, "--to", target]
        command += ["--server", server, "--artifact", str(ARTIFACT)]
        code = subprocess.run(command, check=False).returncode
    raise typer.Exit(code)


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
