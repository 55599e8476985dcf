"""Translate talks of any length: cut them at pauses, send the segments over one websocket."""

import argparse
import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from edge_runtime import (
    Artifact,
    Audio,
    encode_speech,
    open_artifact,
    prepare_speech,
    read_audio,
)
from edge_runtime.address import parse_address
from edge_runtime.client import authorization
from edge_runtime.problems import problem_error
from esrt.cli import exit_on_error
from esrt.errors import AudioError, ServerError
from esrt.languages import direction
from esrt.network import is_loopback

FRAME = 320  # samples in 20 ms, the unit in which loudness is measured
PAUSE = 20  # quiet frames, 0.4 s, that end a segment
MARGIN = 5  # frames kept around a segment
QUIET = 0.02  # a frame is quiet below this share of the loudest frame


def segments(audio: Audio, max_seconds: float) -> Iterator[Audio]:
    """Speech between pauses; a segment longer than `max_seconds` is divided evenly."""
    frames = audio.samples[: len(audio.samples) // FRAME * FRAME].reshape(-1, FRAME)
    loudness = frames.std(axis=1)  # without a constant offset
    speech = np.flatnonzero(loudness > QUIET * loudness.max(initial=0))
    for run in np.split(speech, np.flatnonzero(np.diff(speech) > PAUSE) + 1):
        if not len(run):
            return  # silence
        start, end = max(run[0] - MARGIN, 0) * FRAME, (run[-1] + 1 + MARGIN) * FRAME
        samples = audio.samples[start:end]
        for piece in np.array_split(samples, int(np.ceil(len(samples) / 16_000 / max_seconds))):
            yield Audio(piece)


async def send(stream: ClientConnection, talks: list[Audio], artifact: Artifact) -> None:
    """Encode and send every segment, then announce the end.

    Raises:
        AudioError: no segment has a voice.
    """
    backend, tables, sent = artifact.backend(), artifact.codec_tables(), 0
    for talk in talks:
        for segment in segments(talk, artifact.manifest.front_end.max_seconds):
            try:
                speech = prepare_speech(segment, artifact.manifest.front_end)
            except AudioError:  # a cough, or music
                continue
            packet = encode_speech(speech, backend, codec_tables=tables).packet
            await stream.send(packet)  # waits while the gateway has enough segments to decode
            sent += 1
    if not sent:
        raise AudioError("No voice was found.", "Check the microphone, or name a file with speech.")
    await stream.send("end")


async def receive(stream: ClientConnection) -> None:
    """Print each segment when it is complete; segments arrive in order."""
    async for message in stream:
        match json.loads(message):
            case {"segment": number, "event": "done", "data": answer}:
                print(f"{number}: {answer['transcript']}\n   {answer['translation']}", flush=True)
            case {"segment": number, "event": "error", "data": problem}:
                print(f"{number}: {problem['detail']} {problem['remedy']}", flush=True)


async def translate(options: argparse.Namespace) -> None:
    """Send and receive at the same time.

    Raises:
        EsrtError: an argument, a file or the server is at fault.
    """
    headers = authorization(os.environ.get("ESRT_API_KEY"))
    artifact = open_artifact(options.artifact)
    source, target = direction(options.source, options.target, artifact.manifest.languages)
    address = parse_address(options.server)
    url = address.copy_with(
        scheme={"http": "ws", "https": "wss"}[address.scheme],
        path=f"{address.path.rstrip('/')}/v1/stream",
        params={"src": source.code, "tgt": target.code},
    )
    talks = [read_audio(file) for file in options.files]
    # True: the proxy of the environment.
    proxy: Literal[True] | None = None if is_loopback(address.host) else True
    try:
        async with connect(str(url), additional_headers=headers, proxy=proxy) as stream:
            # If one side fails, its error ends both.
            await asyncio.gather(send(stream, talks, artifact), receive(stream))
    except InvalidStatus as error:
        answer = error.response
        raise problem_error(answer.status_code, problem(answer.body), options.server) from error
    except (OSError, WebSocketException) as error:
        raise ServerError(
            f"The stream to the server {options.server} failed: {error}.",
            "Check that the gateway runs and that --server names it.",
        ) from error


def problem(body: bytes | bytearray) -> Any:
    """The problem document of a rejected handshake; ``None`` if the body is not JSON."""
    try:
        return json.loads(body)
    except ValueError:
        return None


def main() -> None:
    """Read the arguments and translate the files, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="audio files of any length")
    parser.add_argument("--from", dest="source", default="eng", help="spoken language")
    parser.add_argument("--to", dest="target", default="deu", help="language to write")
    parser.add_argument("--server", default="http://127.0.0.1:8080", help="gateway")
    parser.add_argument("--artifact", type=Path, default="build/artifacts/esrt-nano-onnx-int8")
    options = parser.parse_args()
    with exit_on_error():
        asyncio.run(translate(options))


if __name__ == "__main__":
    main()
