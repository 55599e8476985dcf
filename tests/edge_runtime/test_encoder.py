"""Audio to packet, with any backend."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.artifact import open_artifact
from edge_runtime.audio import Audio
from edge_runtime.encoder import encode_speech
from edge_runtime.speech import Speech
from esrt import features, wire
from esrt.arrays import Float32Array
from esrt.errors import PacketContentError
from esrt.manifest import Manifest, sha256
from tests.edge_runtime.helpers import (
    FINGERPRINT,
    STRIDE,
    WIDTH,
    describe,
    front_end,
    speech,
    tiny_graph,
)

GOLDEN = Path(__file__).parents[1] / "golden/learned"


def as_speech(samples: Float32Array) -> Speech:
    """Samples that are encoded as they are."""
    return Speech(samples, 0.0, Audio(samples))


class Recorder:
    """A backend that records its input and returns fixed features."""

    def __init__(self, manifest: Manifest, features: Float32Array) -> None:
        self.manifest = manifest
        self.features = features
        self.mel = np.zeros((0, 0), np.float32)

    def encode(self, mel: Float32Array) -> Float32Array:
        self.mel = mel
        return self.features


@pytest.mark.parametrize("codec", [codec for codec in wire.Codec if not codec.uses_tables])
def test_the_packet_holds_the_features(artifact: Path, codec: wire.Codec) -> None:
    backend = open_artifact(artifact).backend(threads=1)
    audio = as_speech(speech(1.234))
    encoded = encode_speech(audio, backend, codec)
    packet = wire.decode(encoded.packet)
    mel = features.log_mel_features(audio.samples, mel_bins=128, frame_multiple=STRIDE)
    expected = backend.encode(mel)
    steps = np.abs(expected).max(axis=1, keepdims=True) / (7 if codec == "int4" else 127)
    assert (np.abs(packet.features - expected) <= 0.6 * steps).all()
    assert packet.fingerprint == FINGERPRINT
    assert packet.split == "qformer"
    assert packet.codec == encoded.codec == codec
    assert packet.duration_ms == 1234
    assert (encoded.tokens, encoded.width) == packet.features.shape == (16, WIDTH)


def test_codec_tables_make_klt_the_default(tmp_path: Path) -> None:
    tiny_graph(tmp_path / "encoder.onnx")
    # The tables of the golden vectors, whose features have width 4.
    shutil.copy(GOLDEN / wire.CODEC_TABLES_FILE, tmp_path / wire.CODEC_TABLES_FILE)
    files = {wire.CODEC_TABLES_FILE: sha256(tmp_path / wire.CODEC_TABLES_FILE)}
    describe(tmp_path, files=files)
    codec_tables = open_artifact(tmp_path).codec_tables()
    assert codec_tables is not None
    features = np.tile(codec_tables.by_codec[wire.Codec.KLT].mean, (9, 1))
    backend = Recorder(describe(tmp_path), features)
    assert encode_speech(as_speech(speech(1.0)), backend).codec == "int8"
    encoded = encode_speech(as_speech(speech(1.0)), backend, codec_tables=codec_tables)
    assert encoded.codec == "klt"
    decoded = wire.decode(encoded.packet, codec_tables).features
    np.testing.assert_allclose(decoded, features, atol=1e-4)
    chosen = encode_speech(as_speech(speech(1.0)), backend, wire.Codec.FP16, codec_tables)
    assert chosen.codec == "fp16"


def test_an_artifact_without_codec_tables(tmp_path: Path) -> None:
    tiny_graph(tmp_path / "encoder.onnx")
    manifest = describe(tmp_path)
    assert open_artifact(tmp_path).codec_tables() is None
    backend = Recorder(manifest, np.ones((2, WIDTH), np.float32))
    with pytest.raises(PacketContentError, match="int8"):
        encode_speech(as_speech(speech(1.0)), backend, wire.Codec.KLT)


def test_every_stage_is_timed(artifact: Path) -> None:
    times = encode_speech(as_speech(speech(1.0)), open_artifact(artifact).backend(threads=1)).times
    assert min(times.log_mel, times.encode, times.pack) > 0


@pytest.mark.parametrize(
    ("padded_seconds", "frames"), [(None, 104), (4.0, 400)], ids=["as spoken", "padded"]
)
def test_the_manifest_decides_about_padding(
    tmp_path: Path, padded_seconds: float | None, frames: int
) -> None:
    tiny_graph(tmp_path / "encoder.onnx")
    manifest = describe(tmp_path, front_end=front_end(padded_seconds=padded_seconds))
    backend = Recorder(manifest, np.ones((2, WIDTH), np.float32))
    encoded = encode_speech(as_speech(speech(1.001)), backend)
    assert backend.mel.shape == (128, frames)
    assert wire.decode(encoded.packet).duration_ms == 1001


@pytest.mark.parametrize("mel_bins", [80, 128])
def test_the_manifest_decides_about_mel_bins(tmp_path: Path, mel_bins: int) -> None:
    tiny_graph(tmp_path / "encoder.onnx")
    manifest = describe(tmp_path, front_end=front_end(mel_bins=mel_bins))
    backend = Recorder(manifest, np.ones((2, WIDTH), np.float32))
    audio = as_speech(speech(1.0))
    encode_speech(audio, backend)
    expected = features.log_mel_features(audio.samples, mel_bins=mel_bins, frame_multiple=STRIDE)
    np.testing.assert_array_equal(backend.mel, expected)


def test_features_that_are_not_finite_are_not_sent(tmp_path: Path) -> None:
    tiny_graph(tmp_path / "encoder.onnx")
    broken = Recorder(describe(tmp_path), np.full((2, WIDTH), np.nan, np.float32))
    with pytest.raises(PacketContentError):
        encode_speech(as_speech(speech(1.0)), broken)
