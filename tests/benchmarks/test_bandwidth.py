"""Bandwidth benchmark: bytes of requests, audio codecs, and a quick run."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from benchmarks.bandwidth import __main__ as bandwidth
from benchmarks.bandwidth.audio_codecs import flac, opus, opus_packets, through_opus
from benchmarks.bandwidth.measures import request_overhead
from benchmarks.bandwidth.sender import OPUS_KBPS, EdgeThroughPackets, Sender
from esrt.bundled import CHECKPOINT, SAMPLES
from esrt.checkpoint import open_checkpoint
from esrt.wire import Codec
from training.data import mel_batch

CLIP, RATE = soundfile.read(SAMPLES / "eng-1.flac", dtype="float32")


@pytest.fixture(scope="module")
def sender() -> Sender:
    return Sender(open_checkpoint(CHECKPOINT))


def test_quick_run_writes_the_report(tmp_path: Path) -> None:
    out = tmp_path / "bandwidth.json"
    bandwidth.main(out, quick=True)
    record = json.loads(out.read_text("utf-8"))
    rates = {(row["sent"], row["seconds"]): row["kbps"] for row in record["rows"]}
    assert {seconds for _, seconds in rates} == {1, 2, 5, 10, 30}
    by_size = ["pcm", "flac", "fp16", "int8", "int4", "opus 6", "klt", "klt-low"]
    for seconds in (5, 10, 30):
        rates_of = [rates[name, seconds] for name in by_size]
        assert rates_of == sorted(rates_of, reverse=True)
    assert 256 < rates["pcm", 5] < 257
    assert [bar["name"] for bar in record["bars"]] == [
        *("default_kbps_5s", "stretch_kbps_5s", "encode_ms", "decode_ms")
    ]
    bytes_of = record["coders_bytes_5s"]
    assert bytes_of["entropy"] < bytes_of["ans"] < bytes_of["entropy"] + 16
    assert bytes_of["ans"] < bytes_of["zstandard"]
    # Bytes do not depend on the machine, unlike times.
    assert all(bar["holds"] for bar in record["bars"] if "kbps" in bar["name"])


def test_overhead_of_a_request_is_its_head() -> None:
    assert 150 < request_overhead() < 400


def test_opus_has_the_requested_rate_without_its_container() -> None:
    speech = np.tile(CLIP, 5)
    for kbps in OPUS_KBPS:
        ogg = opus(kbps, speech)
        rate = 8 * opus_packets(ogg) * RATE / len(speech) / 1000
        assert 0.7 * kbps < rate < 1.3 * kbps
        assert opus_packets(ogg) < len(ogg) - 800
        assert len(through_opus(kbps, speech)) == len(speech)


def test_flac_is_lossless() -> None:
    decoded, _ = soundfile.read(io.BytesIO(flac(CLIP)), dtype="int16")
    assert np.abs(decoded - 32768 * CLIP).max() <= 2


def test_received_features_come_from_the_packet(sender: Sender) -> None:
    mel, frames = mel_batch(sender.edge.config, [CLIP, CLIP[: len(CLIP) // 2]])
    with torch.inference_mode():
        expected = sender.edge(mel, frames)
    errors = []
    for codec in (Codec.FP16, Codec.INT8, Codec.INT4):
        received = EdgeThroughPackets(sender, codec)(mel, frames)
        assert received.shape == expected.shape
        errors.append(float((received - expected).square().mean() / expected.square().mean()))
    assert errors == sorted(errors)
    assert errors[0] < 1e-5
    assert errors[-1] < 0.05
