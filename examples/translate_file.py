"""Translate an audio file: encode it on this machine, send the packet, print the text."""

import argparse
import os
from pathlib import Path

from edge_runtime import Client, encode_speech, open_artifact, read_speech
from esrt.cli import exit_on_error
from esrt.languages import direction
from esrt.prompt import TextDelta


def main() -> None:
    """Read the arguments, translate one file and print its text as it is decoded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="audio file with at most 12 s of speech")
    parser.add_argument("--from", dest="source", default="eng", help="spoken language")
    parser.add_argument("--to", dest="target", default="deu", help="language to write")
    parser.add_argument("--server", default="http://127.0.0.1:8080", help="gateway")
    parser.add_argument("--artifact", type=Path, default="build/artifacts/esrt-nano-onnx-int8")
    options = parser.parse_args()

    artifact = open_artifact(options.artifact)
    speech = read_speech(options.file, artifact.manifest.front_end)
    encoded = encode_speech(speech, artifact.backend(), codec_tables=artifact.codec_tables())
    print(f"{speech.pcm_bytes} bytes of speech, {len(encoded.packet)} bytes sent")

    part = None
    with Client(options.server, api_key=os.environ.get("ESRT_API_KEY")) as client:
        for event in client.stream(encoded.packet, *direction(options.source, options.target)):
            if isinstance(event, TextDelta):
                # The transcript arrives first, then the translation, each in several pieces.
                if event.part != part:
                    print(f"\n{event.part}: ", end="")
                    part = event.part
                print(event.text, end="", flush=True)
    print()


if __name__ == "__main__":
    with exit_on_error():
        main()
