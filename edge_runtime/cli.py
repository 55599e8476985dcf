"""The command line: ``translate`` a file through the gateway, or ``encode`` it into a packet."""

import io
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from edge_runtime.audio import Audio, read_audio
from edge_runtime.backends import DEFAULT_THREADS, open_backend
from edge_runtime.client import API_KEY_VARIABLE, Client, Done
from edge_runtime.encoder import Encoded, codec_tables_of, encode_audio
from edge_runtime.report import LivePrinter, cautions, figures, print_figures
from esrt.errors import EsrtError, printable
from esrt.languages import Language, check_trained, direction
from esrt.manifest import Manifest, read_manifest
from esrt.prompt import TextDelta
from esrt.wire import Codec

PROGRAM = "python -m edge_runtime"
DEFAULT_SERVER = "http://127.0.0.1:8080"
DEFAULT_ARTIFACT = Path("build/artifacts/esrt-nano-onnx-int8")
USAGE_ERROR = 2

app = typer.Typer(
    help="Speech to feature packet on this machine, translation in the cloud.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="Audio in any common format.")]
ArtifactOption = Annotated[Path, typer.Option("--artifact", help="Folder of the encoder.")]
CodecOption = Annotated[
    Codec | None,
    typer.Option(
        "--codec",
        help="How the packet holds features.",
        show_default="klt where the artifact has its statistics, else int8",
    ),
]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads of the encoder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


@app.command()
def translate(
    file: File,
    source: Annotated[str, typer.Option("--from", metavar="LANG", help="Spoken language.")],
    target: Annotated[str, typer.Option("--to", metavar="LANG", help="Language to write.")],
    server: Annotated[str, typer.Option("--server", help="The gateway.")] = DEFAULT_SERVER,
    artifact: ArtifactOption = DEFAULT_ARTIFACT,
    codec: CodecOption = None,
    threads: ThreadsOption = DEFAULT_THREADS,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Show text as it is decoded.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Translate the speech in FILE; languages are ISO 639-3 codes such as eng or deu.

    A gateway that wants an API key is given the one in the environment variable ESRT_API_KEY.
    """
    languages = direction(source, target)
    with Client(server, api_key=os.environ.get(API_KEY_VARIABLE)) as client:
        manifest = read_manifest(artifact, verify=False)
        check_trained(manifest.model, manifest.languages, languages)
        audio, encoded = _encode(file, artifact, manifest, codec, threads)
        printer = None if as_json else LivePrinter()
        try:
            done = _translate(client, encoded.packet, languages, stream, printer)
        finally:
            if printer:
                printer.end()
    warnings = cautions(file, audio, manifest.front_end, done)
    _print(figures(audio, encoded, done, warnings=warnings), as_json)


@app.command()
def encode(
    file: File,
    out: Annotated[Path, typer.Option("--out", help="Where to write the packet.")],
    artifact: ArtifactOption = DEFAULT_ARTIFACT,
    codec: CodecOption = None,
    threads: ThreadsOption = DEFAULT_THREADS,
    as_json: JsonOption = False,
) -> None:
    """Encode the speech in FILE into a packet, without a server."""
    _check_writable(out)
    manifest = read_manifest(artifact, verify=False)
    audio, encoded = _encode(file, artifact, manifest, codec, threads)
    _write(out, encoded.packet)
    warnings = cautions(file, audio, manifest.front_end)
    _print(figures(audio, encoded, warnings=warnings), as_json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; deliberate errors take one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Text in 45 languages, and JSON, which is UTF-8 whatever the machine's own encoding is.
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        return app(arguments, prog_name=PROGRAM, standalone_mode=False) or 0
    except EsrtError as error:
        return _fail(str(error), error.exit_code)
    except TyperException as error:
        return _fail(f"{error.format_message()} Try: {PROGRAM} --help", USAGE_ERROR)


def _fail(message: str, code: int) -> int:
    _say("error", message)
    return code


def _say(kind: str, message: str) -> None:
    """One line on stderr, whatever a file's name or a server's answer holds."""
    print(f"{kind}: {printable(' '.join(message.split()))}", file=sys.stderr)


def _encode(
    file: Path, artifact: Path, manifest: Manifest, codec: Codec | None, threads: int
) -> tuple[Audio, Encoded]:
    """Audio first: it is refused in milliseconds, while a large encoder loads for seconds."""
    audio = read_audio(file, manifest.front_end)
    backend, codec_tables = (
        open_backend(artifact, threads=threads),
        codec_tables_of(artifact, manifest),
    )
    return audio, encode_audio(audio, backend, codec, codec_tables)


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
        raise AssertionError("a stream ends with Done or raises")
    done = client.translate(packet, *languages)
    if printer:
        printer.show(TextDelta("transcript", done.transcript))
        printer.show(TextDelta("translation", done.translation))
    return done


def _print(measured: dict[str, Any], as_json: bool) -> None:
    for warning in measured["warnings"]:
        _say("warning", warning)
    if as_json:
        text = json.dumps(measured, ensure_ascii=False)
        # JSON leaves these as they are, and some drive a terminal.
        print(re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text))
    else:
        print_figures(measured)
    # Here and not at exit, where a reader that has left (`| head`) would make a traceback.
    sys.stdout.flush()


def _check_writable(out: Path) -> None:
    """Before the work: a folder that is there, and nothing in the way but a file to replace."""
    try:
        if out.exists() and not out.is_file():
            raise EsrtError(f"{out} is not a regular file.", "Name a file for --out.")
        if not out.resolve().parent.is_dir():
            raise EsrtError(f"The folder of {out} does not exist.", "Create it first.")
    except OSError as error:
        raise _not_writable(out, error) from error


def _write(out: Path, data: bytes) -> None:
    """Write under a temporary name and rename, so that no reader meets half a packet."""
    place = out.resolve()  # a link stays, and what it names is replaced
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(place)
    except OSError as error:
        raise _not_writable(out, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _not_writable(out: Path, error: OSError) -> EsrtError:
    return EsrtError(f"{out} cannot be written: {error.strerror}.", "Name another file for --out.")
