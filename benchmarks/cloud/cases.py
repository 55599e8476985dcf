"""Requests of the load benchmark: each bundled clip, encoded as on a phone, in all directions."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.artifacts import export_onnx
from edge_runtime.encoder import encode_speech
from edge_runtime.speech import read_speech
from esrt.bundled import SAMPLES
from esrt.wire import MEDIA_TYPE


@dataclass(frozen=True)
class Case:
    """A packet and a direction.

    Attributes:
        clip: the audio file.
        packet: the features of the clip.
        source: code of the language spoken.
        target: code of the language to translate into.
    """

    clip: str
    packet: bytes
    source: str
    target: str

    @property
    def name(self) -> str:
        """Clip and target language; cases with the same name have the same answer."""
        return f"{self.clip} {self.target}"

    def http(self, *, events: bool = False) -> bytes:
        """Request to the gateway: head and body, ready to be sent."""
        return http_request(
            f"/v1/translate?src={self.source}&tgt={self.target}",
            self.packet,
            MEDIA_TYPE,
            accept="text/event-stream" if events else "application/json",
        )


def http_request(path: str, body: bytes, content_type: str, *, accept: str = "*/*") -> bytes:
    """An HTTP/1.1 POST request as bytes, built before the measurement."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: benchmark\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nAccept: {accept}\r\n\r\n"
    )
    return head.encode() + body


def encode_clips(folder: Path, checkpoint: Path) -> list[Case]:
    """Export the encoder, encode every clip with the edge runtime, and list every direction.

    Raises:
        CheckFailed: the export failed; its own message says why.
    """
    artifact, cases = export_onnx(checkpoint, folder), list[Case]()
    backend, codec_tables = artifact.backend(), artifact.codec_tables()
    for clip in json.loads((SAMPLES / "index.json").read_text("utf-8")):
        speech = read_speech(SAMPLES / clip["file"], backend.manifest.front_end)
        packet = encode_speech(speech, backend, codec_tables=codec_tables).packet
        source = clip["language"]
        cases += [
            Case(clip["file"], packet, source, target)
            for target in sorted(set(clip["texts"]) - {source})
        ]
    return cases


def draw_cases(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """Draw a number of cases: all of them in turn, in a new random order each time."""
    generator = random.Random(seed)
    order: list[Case] = []
    while len(order) < count:
        order += generator.sample(cases, len(cases))
    return order[:count]
