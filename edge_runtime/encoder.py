"""Speech to packet: log-mel, encoder and wire format, with the time of each stage."""

from dataclasses import dataclass
from time import perf_counter

from edge_runtime.backends import Backend
from edge_runtime.speech import Speech
from esrt import wire
from esrt.features import log_mel_features


@dataclass(frozen=True)
class EncodeTimes:
    """Time of each stage on the device, in milliseconds."""

    log_mel: float
    encode: float
    pack: float


@dataclass(frozen=True)
class Encoded:
    """A packet, its codec, the shape of its features, and the time that encoding took."""

    packet: bytes
    codec: wire.Codec
    tokens: int
    width: int
    times: EncodeTimes


def encode_speech(
    speech: Speech,
    backend: Backend,
    codec: wire.Codec | None = None,
    codec_tables: wire.CodecTables | None = None,
) -> Encoded:
    """Encode speech into one packet.

    Args:
        speech: the speech (`edge_runtime.speech.read_speech`).
        backend: the encoder.
        codec: codec of the packet; by default ``klt`` with codec tables, ``int8`` without.
        codec_tables: the model's tables for the transform codecs.

    Raises:
        ArtifactError: the encoder failed.
        PacketContentError: the features do not fit the codec, or are not finite.
    """
    codec = codec or (wire.Codec.KLT if codec_tables else wire.Codec.INT8)
    manifest, front_end = backend.manifest, backend.manifest.front_end
    start = perf_counter()
    mel = log_mel_features(
        speech.samples,
        mel_bins=front_end.mel_bins,
        frame_multiple=front_end.frame_multiple,
        padded_seconds=front_end.padded_seconds,
    )
    transformed = perf_counter()
    features = backend.encode(mel)
    encoded = perf_counter()
    packet = wire.encode(
        features,
        fingerprint=manifest.fingerprint,
        split=manifest.split,
        codec=codec,
        duration_ms=round(1000 * speech.seconds),
        codec_tables=codec_tables,
    )
    packed = perf_counter()
    times = EncodeTimes(
        log_mel=1000 * (transformed - start),
        encode=1000 * (encoded - transformed),
        pack=1000 * (packed - encoded),
    )
    tokens, width = features.shape
    return Encoded(packet, codec, tokens, width, times)
