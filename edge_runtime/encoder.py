"""Audio to packet: log-mel, encoder, wire format, each timed."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from edge_runtime.audio import Audio
from edge_runtime.backends import Backend
from esrt import frontend, wire
from esrt.manifest import Manifest


@dataclass(frozen=True)
class EncodeTimes:
    """Milliseconds of each stage on the device."""

    log_mel: float
    encode: float
    pack: float


@dataclass(frozen=True)
class Encoded:
    """A packet, the shape of the features in it, and what it took to make it."""

    packet: bytes
    codec: wire.Codec
    tokens: int
    width: int
    times: EncodeTimes


def statistics_of(artifact: Path, manifest: Manifest) -> wire.Statistics | None:
    """What an artifact brings for the learned codecs; ``None`` where it brings nothing.

    Raises:
        CheckpointError: the file is damaged.
    """
    if wire.STATISTICS_FILE not in manifest.files:
        return None
    return wire.read_statistics(artifact / wire.STATISTICS_FILE, manifest.fingerprint)


def encode_audio(
    audio: Audio,
    backend: Backend,
    codec: wire.Codec | None = None,
    statistics: wire.Statistics | None = None,
) -> Encoded:
    """Encode speech into one packet.

    Args:
        audio: the speech.
        backend: the encoder.
        codec: how to write the features; by default ``klt`` with statistics and ``int8`` without.
        statistics: what the learned codecs know of the features.

    Raises:
        ArtifactError: the encoder fails.
        PacketContentError: its features do not fit the codec, or are not finite.
    """
    codec = codec or (wire.Codec.KLT if statistics else wire.Codec.INT8)
    manifest, front_end = backend.manifest, backend.manifest.front_end
    start = perf_counter()
    mel = frontend.features(
        audio.samples,
        frame_multiple=front_end.frame_multiple,
        padded_seconds=front_end.padded_seconds,
    )
    heard = perf_counter()
    features = backend.encode(mel)
    encoded = perf_counter()
    packet = wire.encode(
        features,
        fingerprint=manifest.fingerprint,
        split=manifest.split,
        codec=codec,
        duration_ms=round(1000 * audio.seconds),
        statistics=statistics,
    )
    packed = perf_counter()
    times = EncodeTimes(
        log_mel=1000 * (heard - start),
        encode=1000 * (encoded - heard),
        pack=1000 * (packed - encoded),
    )
    tokens, width = features.shape
    return Encoded(packet, codec, tokens, width, times)
