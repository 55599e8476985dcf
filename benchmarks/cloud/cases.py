"""What is asked for: the bundled clips, encoded as a phone does, each into every other language."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.artifact import open_artifact
from edge_runtime.audio import read_audio
from edge_runtime.encoder import encode_audio
from esrt.bundled import SAMPLES
from esrt.errors import CheckFailed
from esrt.wire import MEDIA_TYPE


@dataclass(frozen=True)
class Case:
    """A packet and a direction.

    Attributes:
        clip: the file that was spoken.
        packet: its features.
        source: the language spoken.
        target: the language to write.
    """

    clip: str
    packet: bytes
    source: str
    target: str

    @property
    def name(self) -> str:
        """Which answer this is."""
        return f"{self.clip} {self.target}"

    def http(self, *, events: bool = False) -> bytes:
        """The whole request, ready to be sent: nothing is left to do while the clock runs."""
        head = (
            f"POST /v1/translate?src={self.source}&tgt={self.target} HTTP/1.1\r\nHost: gateway\r\n"
            f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {len(self.packet)}\r\n"
            f"Accept: {'text/event-stream' if events else 'application/json'}\r\n\r\n"
        )
        return head.encode() + self.packet


def encode_clips(folder: Path, checkpoint: Path) -> list[Case]:
    """Export the encoder, run the edge runtime on every clip, and ask for every direction.

    Raises:
        CheckFailed: the export failed; its own message says why.
    """
    out = folder / "onnx-int8"
    command = [sys.executable, "export/to_onnx.py", "--checkpoint", str(checkpoint)]
    if subprocess.run([*command, "--out", str(out)], stdout=subprocess.DEVNULL).returncode:
        raise CheckFailed("The encoder could not be exported.", "Its message is above.")
    artifact, cases = open_artifact(out), list[Case]()
    backend, codec_tables = artifact.backend(), artifact.codec_tables()
    for clip in json.loads((SAMPLES / "index.json").read_text("utf-8")):
        audio = read_audio(SAMPLES / clip["file"], backend.manifest.front_end)
        packet = encode_audio(audio, backend, codec_tables=codec_tables).packet
        source = clip["language"]
        cases += [
            Case(clip["file"], packet, source, target)
            for target in sorted(set(clip["texts"]) - {source})
        ]
    return cases


def drawn(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """So many cases: all of them in turn, each turn in an order of its own."""
    generator = random.Random(seed)
    order: list[Case] = []
    while len(order) < count:
        order += generator.sample(cases, len(cases))
    return order[:count]
