"""Demo on one machine: start a gateway, translate a file through it, stop the gateway.

Without arguments it translates a bundled clip. The gateway is a separate process on loopback and
gets only a feature packet, as it would on another machine.
"""

import json
import os
import signal
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from cloud_vllm.process import start_gateway
from edge_runtime.audio import read_audio
from esrt.bundled import ARTIFACT, CHECKPOINT, SAMPLES
from esrt.cli import VersionOption, run
from esrt.config import ModelConfig
from esrt.errors import ArtifactError, RequestError
from esrt.languages import check_trained, direction
from esrt.manifest import read_manifest, sha256
from esrt.wire import CODEC_TABLES_FILE

CLIP = SAMPLES / "eng-2.flac"
GATEWAY_LOG = Path("build/gateway.log")
# API keys and TLS are for gateways that other machines reach.
IGNORED_SETTINGS = frozenset({"ESRT_KEY_FILE", "ESRT_TLS_CERTIFICATE", "ESRT_TLS_KEY"})


class Engine(StrEnum):
    """Engine of the gateway; transformers is the slow reference."""

    VLLM = "vllm"
    TRANSFORMERS = "transformers"


def is_exported(fingerprint: str | None = None) -> bool:
    """Whether an intact artifact with the checkpoint's codec tables exists.

    Args:
        fingerprint: fingerprint that the artifact must have; ``None`` accepts any.
    """
    try:
        manifest = read_manifest(ARTIFACT)
    except ArtifactError:
        return False
    codec_tables = sha256(CHECKPOINT / CODEC_TABLES_FILE)
    return manifest.files.get(CODEC_TABLES_FILE) == codec_tables and fingerprint in (
        None,
        manifest.fingerprint,
    )


def export() -> None:
    """Export the bundled model to int8 ONNX."""
    command = [sys.executable, "-m", "export", "onnx", "--out", str(ARTIFACT)]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(code)  # the export has printed its error


def check_direction(source: str, target: str) -> None:
    """Check the languages before the engine loads, which takes half a minute.

    Raises:
        LanguageError: the model was not trained for the direction.
    """
    config = ModelConfig.from_dict(json.loads((CHECKPOINT / "config.json").read_text()))
    languages = direction(source, target, config.languages)
    check_trained(config.name, config.languages, languages)


def main(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="Audio file, such as WAV, FLAC, OGG or MP3.",
            show_default="a bundled English clip, to German",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="LANG", help="Spoken language, an ISO 639-3 code."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--to", metavar="LANG", help="Language to write.")
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(
            envvar="ESRT_ENGINE", help="Engine of the gateway; transformers is the slow reference."
        ),
    ] = Engine.VLLM,
    version: VersionOption = False,
) -> None:
    """Translate a file with the phone side and the cloud side on this machine."""
    if file is None:
        file, source, target = CLIP, source or "eng", target or "deu"
    read_audio(file)  # without usable speech the languages do not matter
    if source is None or target is None:
        raise RequestError("The languages of the file are missing.", "Pass --from and --to.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # stops the gateway as well
    file = file.resolve()
    os.chdir(Path(__file__).parent)
    check_direction(source, target)
    environment = {name: v for name, v in os.environ.items() if name not in IGNORED_SETTINGS}
    with start_gateway("--engine", engine, log=GATEWAY_LOG, env=environment) as gateway:
        if not is_exported():
            export()
        with Console(stderr=True, highlight=False).status(
            f"waiting for the {engine} engine to load"
        ):
            gateway.wait_until_ready()
        models = httpx.get(f"{gateway.address}/v1/models", trust_env=False).json()["models"]
        if not is_exported(models[0]["fingerprint"]):
            export()
        command = [sys.executable, "-m", "edge_runtime", "translate", str(file)]
        command += ["--from", source, "--to", target]
        command += ["--server", gateway.address, "--artifact", str(ARTIFACT)]
        code = subprocess.run(command, check=False).returncode
    raise typer.Exit(code)


if __name__ == "__main__":
    run(main)
