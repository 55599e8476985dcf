"""All that stands between a client's bytes and the engine, which itself checks nothing."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from cloud_vllm.service.projector import NumpyProjector
from cloud_vllm.settings import Settings
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint
from esrt.errors import (
    EsrtError,
    FingerprintMismatch,
    MediaTypeError,
    PacketContentError,
    PacketTooLarge,
    RequestError,
    UploadTimeout,
)
from esrt.wire import MAX_PACKET_BYTES, MEDIA_TYPE, Codec, Packet, Split, claimed_tokens, decode

# So many packets at most are projected together.
_AT_ONCE = 16
# Multiplications that take about a millisecond. So much is done at once, because to hand it to a
# thread and to wait for that takes longer; a packet that is more work by itself goes to a thread.
_LITTLE = 20_000_000


@dataclass(frozen=True)
class ProjectedPacket:
    """What a packet became.

    Attributes:
        embeddings: (tokens, decoder width).
        decode_ms: how long reading and checking it took.
        project_ms: how long the projector took, for all packets that it took together.
    """

    embeddings: Float32Array
    decode_ms: float
    project_ms: float


@dataclass(frozen=True)
class _Decoded:
    packet: Packet
    ms: float


def check_media_type(request: Request) -> None:
    """Look at the content type, before anything is read.

    Raises:
        MediaTypeError: it is not that of a packet.
    """
    found = request.headers.get("content-type", "")
    if found.partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise MediaTypeError(
            f"The body's content type is {found[:64] or 'not given'}.",
            f"Send a feature packet as {MEDIA_TYPE}; speech is encoded on the device, not here.",
        )


def check_no_body(request: Request) -> None:
    """See that a request that names kept features brings none.

    Raises:
        RequestError: it declares a body.
    """
    headers = request.headers
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise RequestError(
            "The request has a body and names features as well.",
            "Send the packet or its handle, not both.",
        )


async def read_body(request: Request, seconds: float) -> bytes:
    """Read a body of at most `MAX_PACKET_BYTES`, whatever its declared length.

    Raises:
        PacketTooLarge: there is more; the rest is not read.
        UploadTimeout: it did not arrive in time.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_PACKET_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > MAX_PACKET_BYTES:
                    raise _too_large()
                body += chunk
    except TimeoutError:
        raise UploadTimeout(
            f"The packet did not arrive within {seconds:g} s.", "Send it again, all at once."
        ) from None
    return bytes(body)


class PacketPreprocessor:
    """Turns the bytes of packets into embeddings for one checkpoint's decoder."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        self._checkpoint = checkpoint
        self._projection = NumpyProjector(checkpoint.projector())
        self._codec_tables = checkpoint.codec_tables()
        # Beyond this a value would become infinite in the decoder's precision.
        self._bound = torch.finfo(getattr(torch, settings.dtype)).max
        self._waiting: list[tuple[bytes, asyncio.Future[ProjectedPacket]]] = []
        self._work: asyncio.Task[None] | None = None

    @property
    def codecs(self) -> list[Codec]:
        """Those whose packets can be read."""
        uses_tables = self._codec_tables.by_codec if self._codec_tables else {}
        return [codec for codec in Codec if not codec.uses_tables or codec in uses_tables]

    async def admit(self, body: bytes) -> ProjectedPacket:
        """Decode, check and project, in a worker thread where it may take longer than a moment.

        Packets that arrive while others are worked on wait and then are projected together, which
        is less work than one by one.

        Raises:
            PacketError: the bytes are no packet.
            PacketTooLarge: the packet is beyond the limits of the wire format.
            FingerprintMismatch: another model made it, or a codec of other statistics.
            PacketContentError: this model cannot take its features.
        """
        answer: asyncio.Future[ProjectedPacket] = asyncio.get_running_loop().create_future()
        self._waiting.append((body, answer))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._work_off())
        return await answer

    async def _work_off(self) -> None:
        while self._waiting:
            count, little = self._next()
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            outcomes: Sequence[ProjectedPacket | Exception]
            try:
                bodies = [body for body, _ in batch]
                if little:
                    outcomes = self.project_batch(bodies)
                else:
                    outcomes = await run_in_threadpool(self.project_batch, bodies)
            except Exception as error:
                outcomes = [error] * len(batch)
            for (_, answer), outcome in zip(batch, outcomes, strict=True):
                if answer.done():  # the client has gone
                    continue
                if isinstance(outcome, Exception):
                    answer.set_exception(outcome)
                else:
                    answer.set_result(outcome)
            if self._waiting:
                # Those that are ready go on to the engine meanwhile.
                await asyncio.sleep(0)

    def _next(self) -> tuple[int, bool]:
        """How many packets are worked on next, and whether they are little work."""
        work = (
            claimed_tokens(body) * self._projection.multiplications
            for body, _ in self._waiting[:_AT_ONCE]
        )
        little = sum(1 for total in itertools.accumulate(work) if total <= _LITTLE)
        return (little, True) if little else (min(len(self._waiting), _AT_ONCE), False)

    def project_batch(self, bodies: Sequence[bytes]) -> list[ProjectedPacket | EsrtError]:
        """What each packet becomes, or why it is refused; see `admit`."""
        found: list[_Decoded | EsrtError] = [self._decoded(body) for body in bodies]
        projected = [
            one.packet.features
            for one in found
            if isinstance(one, _Decoded) and one.packet.split == Split.QFORMER
        ]
        begin = time.perf_counter()
        if projected:
            rows = self._projection(np.concatenate(projected))
        project_ms, row = _ms(begin), 0
        outcomes: list[ProjectedPacket | EsrtError] = []
        for one in found:
            if isinstance(one, EsrtError):
                outcomes.append(one)
            elif one.packet.split == Split.QFORMER:
                begun, row = row, row + len(one.packet.features)
                outcomes.append(self._finite(rows[begun:row], one.ms, project_ms))
            else:
                outcomes.append(self._finite(one.packet.features, one.ms, 0.0))
        return outcomes

    def _decoded(self, body: bytes) -> _Decoded | EsrtError:
        begin = time.perf_counter()
        try:
            packet = decode(body, self._codec_tables)
            self._check(packet)
        except EsrtError as error:
            return error
        return _Decoded(packet, _ms(begin))

    def _finite(
        self, embeddings: Float32Array, decode_ms: float, project_ms: float
    ) -> ProjectedPacket | PacketContentError:
        # Written so that NaN, which compares as false, is refused too.
        if not (np.abs(embeddings) <= self._bound).all():
            return PacketContentError(
                "The features give embeddings that are not finite.",
                "Check the audio and the encoder that made these features.",
            )
        return ProjectedPacket(np.ascontiguousarray(embeddings), decode_ms, project_ms)

    def _check(self, packet: Packet) -> None:
        config, served = self._checkpoint.config, self._checkpoint.fingerprint
        if packet.fingerprint != served:
            raise FingerprintMismatch(
                f"The packet was made by model {packet.fingerprint}, but {served} serves here.",
                "Use the artifact whose manifest has the fingerprint that /v1/models shows.",
            )
        tokens, width = packet.features.shape
        expected = config.feature_width(packet.split)
        if width != expected:
            raise PacketContentError(
                f"The features have width {width}, expected {expected} at {packet.split}.",
                "Check that the packet names the split point that its features were taken from.",
            )
        fixed = config.q_former.stride is None
        if tokens > config.max_tokens or (fixed and tokens != config.max_tokens):
            raise PacketContentError(
                f"The packet holds {tokens} tokens, expected"
                f" {'exactly' if fixed else 'at most'} {config.max_tokens}.",
                "Cut the speech into shorter parts and send each as a packet.",
            )


def _too_large() -> PacketTooLarge:
    return PacketTooLarge(
        f"The body is longer than {MAX_PACKET_BYTES} bytes.",
        "Send shorter speech or use a smaller codec.",
    )


def _ms(since: float) -> float:
    return (time.perf_counter() - since) * 1e3
