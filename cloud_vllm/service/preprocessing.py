"""Preprocessing of packets: decode, check, project. The engine checks nothing."""

import asyncio
import time
from dataclasses import dataclass

import numpy as np
import torch

from cloud_vllm.request_context import elapsed_ms
from cloud_vllm.settings import Settings
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint
from esrt.errors import FingerprintMismatch, PacketContentError
from esrt.wire import Codec, Packet, Split, claimed_tokens, decode

# About a millisecond of work. Less is done on the event loop, because a thread would cost more.
_INLINE_MULTIPLICATIONS = 20_000_000


@dataclass(frozen=True)
class ProjectedPacket:
    """A packet's features in the decoder's embedding space.

    Attributes:
        embeddings: (tokens, decoder width).
        decode_ms: time to decode and check the packet.
        project_ms: time of the projector; 0 for adapter packets.
    """

    embeddings: Float32Array
    decode_ms: float
    project_ms: float


class PacketPreprocessor:
    """Decodes, checks and projects packets for one checkpoint's decoder."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        self._checkpoint = checkpoint
        self._projector = checkpoint.projector().requires_grad_(False)
        self._multiplications_per_token = sum(
            parameter.numel() for parameter in self._projector.parameters()
        )
        self._codec_tables = checkpoint.codec_tables()
        # Larger values would become infinite in the decoder's precision.
        self._max_value = torch.finfo(getattr(torch, settings.dtype)).max
        # Torch uses several cores for one packet, so a second thread would gain nothing.
        self._one_thread = asyncio.Lock()

    @property
    def codecs(self) -> list[Codec]:
        """The codecs whose packets can be decoded."""
        with_tables = self._codec_tables.by_codec if self._codec_tables else {}
        return [codec for codec in Codec if not codec.uses_tables or codec in with_tables]

    async def preprocess(self, body: bytes) -> ProjectedPacket:
        """Run `project`; for a large packet in a worker thread, to not block the event loop."""
        if claimed_tokens(body) * self._multiplications_per_token <= _INLINE_MULTIPLICATIONS:
            return self.project(body)
        async with self._one_thread:
            return await asyncio.to_thread(self.project, body)

    def project(self, body: bytes) -> ProjectedPacket:
        """Decode, check and project one packet.

        Raises:
            PacketError: the bytes are not a packet.
            PacketTooLarge: the packet exceeds the limits of the wire format.
            FingerprintMismatch: another model made the packet, or other codec tables.
            PacketContentError: the features do not fit the model.
        """
        begin = time.perf_counter()
        packet = decode(body, self._codec_tables)
        self._check(packet)
        embeddings, decode_ms, project_ms = packet.features, elapsed_ms(begin), 0.0
        if packet.split == Split.QFORMER:
            begin = time.perf_counter()
            embeddings = self._projector(torch.from_numpy(embeddings)).numpy()
            project_ms = elapsed_ms(begin)
        # This form rejects NaN as well: any comparison with NaN is false.
        if not (np.abs(embeddings) <= self._max_value).all():
            raise PacketContentError(
                "The features give embeddings that are not finite.",
                "Check the audio and the encoder that made these features.",
            )
        return ProjectedPacket(embeddings, decode_ms, project_ms)

    def _check(self, packet: Packet) -> None:
        config, served = self._checkpoint.config, self._checkpoint.fingerprint
        if packet.fingerprint != served:
            raise FingerprintMismatch(
                f"The packet was made by model {packet.fingerprint}, but this gateway serves"
                f" {served}.",
                "Use the artifact whose manifest has the fingerprint that /v1/models shows.",
            )
        tokens, width = packet.features.shape
        expected = config.feature_width(packet.split)
        if width != expected:
            raise PacketContentError(
                f"The features have width {width}, expected {expected} at {packet.split}.",
                "Check that the packet names the split point at which its features were taken.",
            )
        fixed = config.q_former.stride is None
        if tokens > config.max_tokens or (fixed and tokens != config.max_tokens):
            raise PacketContentError(
                f"The packet holds {tokens} tokens, expected"
                f" {'exactly' if fixed else 'at most'} {config.max_tokens}.",
                "Cut the speech into shorter parts and send each as a packet.",
            )
