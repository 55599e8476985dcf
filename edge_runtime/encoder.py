"""Audio to packet: log-mel, encoder, wire format, each timed."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from edge_runtime.audio import Audio
from edge_runtime.backends import Backend
from esrt import wire
from esrt.features import log_mel_features
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


def codec_tables_of(artifact: Path, manifest: Manifest) -> wire.CodecTables | None:
    """What an artifact brings for the learned codecs; ``None`` where it brings nothing.

    Raises:
        CheckpointError: the file is damaged.
    """
    if wire.CODEC_TABLES_FILE not in manifest.files:
        return None
    return wire.read_codec_tables(artifact / wire.CODEC_TABLES_FILE, manifest.fingerprint)


def encode_audio(
    audio: Audio,
    backend: Backend,
    codec: wire.Codec | None = None,
    codec_tables: wire.CodecTables | None = None,
) -> Encoded:
    """Encode speech into one packet.

    Args:
        audio: the speech.
        backend: the encoder.
        codec: how to write the features; by default ``klt`` with tables and ``int8`` without.
        codec_tables: the transform codecs' tables of this model.

    Raises:
        ArtifactError: the encoder fails.
        PacketContentError: its features do not fit the codec, or are not finite.
    """
    codec = codec or (wire.Codec.KLT if codec_tables else wire.Codec.INT8)
    manifest, front_end = backend.manifest, backend.manifest.front_end
    start = perf_counter()
    mel = log_mel_features(
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
        codec_tables=codec_tables,
    )
    packed = perf_counter()
    times = EncodeTimes(
        log_mel=1000 * (heard - start),
        encode=1000 * (encoded - heard),
        pack=1000 * (packed - encoded),
    )
    tokens, width = features.shape
    return Encoded(packet, codec, tokens, width, times)
