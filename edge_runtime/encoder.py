"""Audio to packet: log-mel, encoder, wire format, each timed."""

from dataclasses import dataclass
from time import perf_counter

from edge_runtime.audio import Audio
from edge_runtime.backends import Backend
from esrt import frontend, wire


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


def encode_audio(audio: Audio, backend: Backend, codec: wire.Codec = wire.Codec.INT8) -> Encoded:
    """Encode speech into one packet.

    Raises:
        ArtifactError: the encoder fails.
        PacketContentError: its features do not fit the codec, or are not finite.
    """
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
    )
    packed = perf_counter()
    times = EncodeTimes(
        log_mel=1000 * (heard - start),
        encode=1000 * (encoded - heard),
        pack=1000 * (packed - encoded),
    )
    tokens, width = features.shape
    return Encoded(packet, codec, tokens, width, times)
