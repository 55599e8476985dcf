"""Command line: ``translate`` a file through the gateway, or ``encode`` it into a packet."""

import io
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_runtime.address import API_KEY_VARIABLE, parse_address
from edge_runtime.answer import Done
from edge_runtime.artifact import Artifact, open_artifact
from edge_runtime.backends import DEFAULT_THREADS
from edge_runtime.client import Client, authorization
from edge_runtime.encoder import Encoded, encode_speech
from edge_runtime.report import LivePrinter, measurements, print_measurements, warnings_for
from edge_runtime.speech import Speech, read_speech
from esrt.bundled import ARTIFACT
from esrt.cli import application, print_line
from esrt.cli import run as run_command
from esrt.cores import MAX_THREADS
from esrt.errors import EsrtError
from esrt.files import refuse_input, replace_file
from esrt.languages import Language, check_trained, direction
from esrt.prompt import TextDelta
from esrt.wire import Codec

DEFAULT_SERVER = "http://127.0.0.1:8080"

app = application(
    "Encode speech into a feature packet on this machine; translate the packet in the cloud."
)

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="Audio file, such as WAV, FLAC, OGG or MP3.")
]
ArtifactOption = Annotated[
    Path,
    typer.Option(
        "--artifact",
        metavar="FOLDER",
        help="Folder that an export wrote.",
        show_default="the bundled model's, build/artifacts/esrt-nano-onnx-int8",
    ),
]
CodecOption = Annotated[
    Codec | None,
    typer.Option(
        "--codec",
        metavar="CODEC",
        help="Codec of the packet, from large to small: fp16 (exact to 16 bits), int8, int4, klt"
        " (decorrelated and entropy-coded), klt-low (the same, coarser).",
        show_default="klt if the artifact has codec tables, else int8",
    ),
]
ThreadsOption = Annotated[
    int,
    typer.Option(
        "--threads", metavar="COUNT", min=1, max=MAX_THREADS, help="CPU threads of the encoder."
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object instead, with the names of the HTTP interface."
    ),
]


@app.command(short_help="Translate the speech in a file.")
def translate(
    file: File,
    source: Annotated[str, typer.Option("--from", metavar="LANG", help="Spoken language.")],
    target: Annotated[str, typer.Option("--to", metavar="LANG", help="Language to write.")],
    server: Annotated[
        str,
        typer.Option(
            "--server", metavar="URL", envvar="ESRT_SERVER", help="Address of the gateway."
        ),
    ] = DEFAULT_SERVER,
    artifact: ArtifactOption = ARTIFACT,
    codec: CodecOption = None,
    threads: ThreadsOption = DEFAULT_THREADS,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Show the text as it is decoded.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Translate the speech in FILE; a language is a code or name such as deu, de or German.

    If the gateway requires an API key, set the environment variable ESRT_API_KEY.
    """
    api_key = os.environ.get(API_KEY_VARIABLE)
    # An invalid argument is rejected here, before the encoder runs.
    parse_address(server)
    authorization(api_key)
    opened = open_artifact(artifact)
    manifest = opened.manifest
    languages = direction(source, target, manifest.languages)
    check_trained(manifest.model, manifest.languages, languages)
    speech, encoded = _encode(file, opened, codec, threads)
    printer = None if as_json else LivePrinter()
    try:
        with Client(server, api_key=api_key) as client:
            done = _translate(client, encoded.packet, languages, stream, printer)
    finally:
        if printer:
            printer.end()
    warnings = warnings_for(file, speech.recording, done)
    _print(measurements(speech, encoded, done, warnings=warnings), as_json)


@app.command(short_help="Encode the speech in a file, without a server.")
def encode(
    file: File,
    out: Annotated[Path, typer.Option("--out", metavar="PACKET", help="File for the packet.")],
    artifact: ArtifactOption = ARTIFACT,
    codec: CodecOption = None,
    threads: ThreadsOption = DEFAULT_THREADS,
    as_json: JsonOption = False,
) -> None:
    """Encode the speech in FILE into a packet, without a server."""
    _check_writable(out)
    refuse_input(out, file, *(artifact.iterdir() if artifact.is_dir() else ()))
    opened = open_artifact(artifact)
    speech, encoded = _encode(file, opened, codec, threads)
    with replace_file(out) as partial:
        partial.write_bytes(encoded.packet)
    warnings = warnings_for(file, speech.recording)
    _print(measurements(speech, encoded, warnings=warnings), as_json)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; an error takes one line on stderr.

    Raises:
        SystemExit: always, with the exit code.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The text is in any of 45 languages, and JSON is UTF-8 whatever the machine's encoding.
        sys.stdout.reconfigure(encoding="utf-8")
    run_command(app, arguments)


def _encode(
    file: Path, artifact: Artifact, codec: Codec | None, threads: int
) -> tuple[Speech, Encoded]:
    # Audio first: a check of the audio takes milliseconds, a large encoder loads for seconds.
    speech = read_speech(file, artifact.manifest.front_end)
    backend = artifact.backend(threads=threads)
    return speech, encode_speech(speech, backend, codec, artifact.codec_tables())


def _translate(
    client: Client,
    packet: bytes,
    languages: tuple[Language, Language],
    stream: bool,
    printer: LivePrinter | None,
) -> Done:
    if stream:
        for event in client.stream(packet, *languages):
            if isinstance(event, Done):
                return event
            if printer:
                printer.show(event)
        raise AssertionError("the stream ended without Done and without an error")
    done = client.translate(packet, *languages)
    if printer:
        printer.show(TextDelta("transcript", done.transcript))
        printer.show(TextDelta("translation", done.translation))
    return done


def _print(measured: dict[str, Any], as_json: bool) -> None:
    for warning in measured["warnings"]:
        print_line("warning", warning)
    if as_json:
        text = json.dumps(measured, ensure_ascii=False)
        # JSON permits these control characters, but some of them change a terminal's state.
        print(re.sub(r"[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text))
    else:
        print_measurements(measured)
    # A closed pipe (`| head`) is reported here; at interpreter exit it would print a traceback.
    sys.stdout.flush()


def _check_writable(out: Path) -> None:
    """Reject an output path that cannot be written, before the encoder runs."""
    if out.exists() and not out.is_file():
        raise EsrtError(f"{out} is not a regular file.", "Name a file for --out.")
    if not out.resolve().parent.is_dir():
        raise EsrtError(f"The folder of {out} does not exist.", "Create it first.")
