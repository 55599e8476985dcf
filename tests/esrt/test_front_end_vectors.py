"""The front end's golden vectors: our own modules, two others, and their generator."""

import msgspec
import numpy as np
import pytest
import torch
import whisper
from transformers import WhisperFeatureExtractor

from esrt import wire
from esrt.arrays import Float32Array
from esrt.bundled import CHECKPOINT
from esrt.checkpoint import open_checkpoint
from esrt.features import HOP, MEL_BINS, SAMPLE_RATE, log_mel_features
from esrt.model import EdgeModel
from esrt.speech import SpeechSettings, find_speech, trim_and_level
from esrt.wire import Codec, Split
from tests.golden import make_front_end
from tests.golden.front_end_vectors import (
    FOLDER,
    INDEX,
    RECORDINGS,
    VECTORS,
    Recording,
    Vector,
)

each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
MAX_BYTES = 600_000


@pytest.fixture(scope="module")
def model() -> EdgeModel:
    return open_checkpoint(CHECKPOINT).edge_model()


def near(found: Float32Array, expected: Float32Array, tolerance: float) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)
def test_speech(recording: Recording) -> None:
    settings = msgspec.convert(INDEX["speech_settings"], SpeechSettings)
    bounds = find_speech(recording.audio, settings)
    assert bounds is not None
    expected = recording.bounds
    assert (bounds.start, bounds.stop) == (expected.start, expected.stop)
    assert bounds.offset == pytest.approx(expected.offset, abs=1e-7)
    assert bounds.gain == pytest.approx(expected.gain, rel=1e-6)
    near(trim_and_level(recording.audio, settings), recording.speech, 2e-5)


@each_vector
def test_log_mel(vector: Vector) -> None:
    for bins, log_mel in zip(MEL_BINS, vector.log_mels, strict=True):
        found = log_mel_features(
            vector.audio,
            mel_bins=bins,
            frame_multiple=INDEX["frame_multiple"],
            padded_seconds=vector.padded_seconds,
        )
        near(found, log_mel, 2e-5)


@each_vector
def test_log_mel_is_that_of_openai_whisper(vector: Vector) -> None:
    audio = whisper.pad_or_trim(vector.audio, vector.log_mel.shape[1] * HOP)
    for bins, log_mel in zip(MEL_BINS, vector.log_mels, strict=True):
        near(whisper.log_mel_spectrogram(audio, n_mels=bins).numpy(), log_mel, 1e-4)


@each_vector
def test_log_mel_is_that_of_transformers(vector: Vector) -> None:
    samples = vector.log_mel.shape[1] * HOP
    for bins, log_mel in zip(MEL_BINS, vector.log_mels, strict=True):
        extractor = WhisperFeatureExtractor(
            feature_size=bins, sampling_rate=SAMPLE_RATE, chunk_length=samples / SAMPLE_RATE
        )
        found = extractor(
            vector.audio, sampling_rate=SAMPLE_RATE, padding="max_length", max_length=samples
        )["input_features"][0]
        near(found, log_mel, 1e-4)


@each_vector
def test_features(vector: Vector, model: EdgeModel) -> None:
    with torch.inference_mode():
        found = model.features(torch.from_numpy(vector.log_mel[None]))[0].numpy()
    near(found, vector.features, 1e-4)


@each_vector
def test_packet(vector: Vector) -> None:
    packet = wire.decode(vector.packet)
    assert packet.fingerprint == INDEX["fingerprint"] == open_checkpoint(CHECKPOINT).fingerprint
    np.testing.assert_array_equal(
        packet.features, vector.features.astype(np.float16).astype(np.float32)
    )
    assert vector.packet == wire.encode(
        vector.features,
        fingerprint=INDEX["fingerprint"],
        split=Split(INDEX["split"]),
        codec=Codec.FP16,
        duration_ms=round(1000 * len(vector.pcm) / SAMPLE_RATE),
    )


def test_the_vectors_cover_the_edge_cases() -> None:
    named = {vector.name: vector for vector in VECTORS}
    block = INDEX["frame_multiple"] * HOP
    assert len(named["shortest"].pcm) == block
    assert len(named["odd-length"].pcm) % HOP and len(named["odd-length"].pcm) % block
    assert named["padded"].log_mel.shape[1] == 100 * (named["padded"].padded_seconds or 0)
    # The smallest power takes effect in one, and the dynamic range in another.
    lowest = {name: float(vector.log_mel.min()) for name, vector in named.items()}
    assert lowest["quiet"] == -1.5
    range_limit = (float(named["padded"].log_mel.max()) * 4 - 8) / 4
    assert lowest["padded"] == pytest.approx(range_limit, abs=1e-6) and range_limit > -1.4
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MAX_BYTES


def test_golden_files_equal_the_output_of_their_script() -> None:
    """The text and the integers exactly, other numbers within the rounding of a processor."""
    made = make_front_end.files()
    assert {path.name for path in FOLDER.iterdir()} == set(made)
    for name, content in made.items():
        stored = (FOLDER / name).read_bytes()
        if name.endswith(".f32le"):
            near(np.frombuffer(content, "<f4"), np.frombuffer(stored, "<f4"), 2e-6)
        elif not name.endswith(".fp16.bin"):  # rounding may differ; compared by test_packet
            assert content == stored, name
