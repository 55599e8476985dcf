"""Representations to attack: log-mel, encoder states, Q-Former output, decoded packets.

Each representation is a file with a sequence for each utterance, so that attackers can run in
separate processes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from benchmarks.privacy.speakers import Speech
from esrt import wire
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint
from esrt.features import SAMPLE_RATE
from training.data import mel_batch

LOG_MEL, Q_FORMER = "log-mel", "Q-Former output"
_BATCH = 32


@dataclass(frozen=True)
class Sequences:
    """A sequence (steps, width) for each utterance.

    ``stride`` consecutive steps cover at least 40 ms.
    """

    values: NDArray[np.float16]
    ends: NDArray[np.int64]
    stride: int

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> Float32Array:
        start = self.ends[row - 1] if row else 0
        return self.values[start : self.ends[row]].astype(np.float32)

    @classmethod
    def of(cls, rows: Iterable[NDArray[Any]], stride: int) -> "Sequences":
        """Collect an array for each utterance, in half precision, which is enough for attackers."""
        halves = [row.astype(np.float16) for row in rows]
        return cls(np.concatenate(halves), np.cumsum([len(row) for row in halves]), stride)

    def save(self, path: Path) -> Path:
        """Write to a file; returns its path."""
        with path.open("wb") as file:
            for part in (self.values, self.ends, np.array(self.stride)):
                np.save(file, part)
        return path

    @classmethod
    def load(cls, path: Path) -> "Sequences":
        """Read a file that `save` wrote."""
        with path.open("rb") as file:
            values, ends, stride = (np.load(file) for _ in range(3))
        return cls(values, ends, int(stride))


@dataclass(frozen=True)
class DecodedPacket:
    """Content of a packet: its decoded features, and the sizes that its header and length show."""

    features: Float32Array
    tokens: int
    duration_ms: int
    bytes: int


# Features and duration in milliseconds, through one packet and back.
PacketCodec = Callable[[Float32Array, int], DecodedPacket]


def through_packet(
    features: Float32Array,
    duration_ms: int,
    *,
    codec: wire.Codec,
    fingerprint: str,
    codec_tables: wire.CodecTables | None,
) -> DecodedPacket:
    """Encode features (tokens, width) and the duration of the speech as a packet; decode it."""
    data = wire.encode(
        features,
        fingerprint=fingerprint,
        split=wire.Split.QFORMER,
        codec=codec,
        duration_ms=duration_ms,
        codec_tables=codec_tables,
    )
    packet = wire.decode(data, codec_tables)
    return DecodedPacket(packet.features, len(packet.features), packet.duration_ms, len(data))


def packet_codecs(checkpoint: Checkpoint) -> dict[str, PacketCodec]:
    """Transmission through each codec of the checkpoint, by the codec's name."""
    codec_tables = checkpoint.codec_tables()
    with_tables = codec_tables.by_codec if codec_tables else {}
    return {
        str(codec): partial(
            through_packet,
            codec=codec,
            fingerprint=checkpoint.fingerprint,
            codec_tables=codec_tables,
        )
        for codec in wire.Codec
        if not codec.uses_tables or codec in with_tables
    }


def decode_all(codec: PacketCodec, features: Sequences, speech: Speech) -> list[DecodedPacket]:
    """Pass the features of all utterances through packets of a codec."""
    return [
        codec(features[row], round(1000 * len(audio) / SAMPLE_RATE))
        for row, audio in enumerate(speech.audio)
    ]


@torch.inference_mode()
def model_states(checkpoint: Checkpoint, speech: Speech) -> dict[str, Sequences]:
    """Compute log-mel, the encoder's states after convolutions and layers, and Q-Former output."""
    config, model = checkpoint.config, checkpoint.edge_model()
    states: dict[str, Tensor] = {}
    layers = {"encoder, convolutions": model.encoder.layers[0]} | {
        f"encoder, layer {number}": layer for number, layer in enumerate(model.encoder.layers, 1)
    }

    def keep(name: str, output: Any) -> None:
        states[name] = output if isinstance(output, Tensor) else output[0]

    for name, layer in layers.items():
        if name.endswith("convolutions"):
            layer.register_forward_pre_hook(lambda _, inputs, name=name: keep(name, inputs))
        else:
            layer.register_forward_hook(lambda _, inputs, output, name=name: keep(name, output))
    stride = config.q_former.stride or 1
    steps = {LOG_MEL: 1} | dict.fromkeys(layers, 2) | {Q_FORMER: 2 * stride}
    rows: dict[str, dict[int, NDArray[np.float16]]] = {name: {} for name in steps}
    order = sorted(range(len(speech.audio)), key=lambda row: len(speech.audio[row]))
    starts = range(0, len(order), _BATCH)
    for start in track(starts, description="encoding"):
        part = order[start : start + _BATCH]
        audio = [speech.audio[row].astype(np.float32) / np.float32(32768) for row in part]
        mel, frames = mel_batch(config, audio)
        states[Q_FORMER] = model.features(mel, frames)
        states[LOG_MEL] = mel.transpose(1, 2)
        for name, rate in steps.items():
            for place, row in enumerate(part):
                rows[name][row] = (
                    states[name][place, : int(frames[place]) // rate].numpy().astype(np.float16)
                )
    return {
        name: Sequences.of((rows[name].pop(row) for row in range(len(order))), max(1, 4 // rate))
        for name, rate in steps.items()
    }
