"""Translate talks of any length: cut them at pauses, send the segments over one websocket."""

import argparse
import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from edge_runtime import Artifact, Audio, encode_audio, open_artifact, read_audio

FRAME = 320  # samples in 20 ms, the unit in which loudness is measured
PAUSE = 20  # quiet frames, 0.4 s, that end a segment
MARGIN = 3  # frames kept around a segment; esrt-nano does not bear more before the speech
QUIET = 0.02  # a frame is quiet below this share of the loudest frame


def segments(audio: Audio, max_seconds: float) -> Iterator[Audio]:
    """Speech between pauses; a segment longer than `max_seconds` is divided evenly."""
    frames = audio.samples[: len(audio.samples) // FRAME * FRAME].reshape(-1, FRAME)
    loudness = np.sqrt(np.mean(frames**2, axis=1))
    speech = np.flatnonzero(loudness > QUIET * loudness.max())
    for run in np.split(speech, np.flatnonzero(np.diff(speech) > PAUSE) + 1):
        start, end = max(run[0] - MARGIN, 0) * FRAME, (run[-1] + 1 + MARGIN) * FRAME
        samples = audio.samples[start:end]
        for piece in np.array_split(samples, int(np.ceil(len(samples) / 16_000 / max_seconds))):
            yield Audio(piece)


async def send(stream: ClientConnection, files: list[Path], artifact: Artifact) -> None:
    """Encode and send every segment, then announce the end."""
    backend, tables = artifact.backend(), artifact.codec_tables()
    for file in files:
        for segment in segments(read_audio(file), artifact.manifest.front_end.max_seconds):
            packet = encode_audio(segment, backend, codec_tables=tables).packet
            await stream.send(packet)  # waits while the gateway has enough segments to decode
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
    """Send and receive at the same time."""
    key = os.environ.get("ESRT_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    address = options.server.replace("http", "ws", 1)  # https becomes wss
    url = f"{address}/v1/stream?src={options.source}&tgt={options.target}"
    artifact = open_artifact(options.artifact)
    async with connect(url, additional_headers=headers) as stream, asyncio.TaskGroup() as tasks:
        tasks.create_task(send(stream, options.files, artifact))
        tasks.create_task(receive(stream))


def main() -> None:
    """Read the arguments and translate the files, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="audio files of any length")
    parser.add_argument("--from", dest="source", default="eng", help="spoken language")
    parser.add_argument("--to", dest="target", default="deu", help="language to write")
    parser.add_argument("--server", default="http://127.0.0.1:8080", help="gateway")
    parser.add_argument("--artifact", type=Path, default="build/artifacts/esrt-nano-onnx-int8")
    asyncio.run(translate(parser.parse_args()))


if __name__ == "__main__":
    main()
