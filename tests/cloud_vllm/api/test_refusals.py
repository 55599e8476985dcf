"""Rejected requests: the status, the type, and that the gateway keeps serving."""

import asyncio
import json
import random
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from cloud_vllm.api.app import create_app
from cloud_vllm.engines import EngineState, GenerationChunk
from cloud_vllm.service.preprocessing import PacketPreprocessor, ProjectedPacket
from cloud_vllm.settings import Settings
from esrt import wire
from esrt.checkpoint import Checkpoint
from esrt.errors import PacketContentError, PacketError
from tests.cloud_vllm.helpers import (
    EVENTS,
    PACKET,
    URL,
    Packets,
    ScriptedEngine,
    assert_problem,
    call,
)
from tests.tiny_checkpoint import SENTENCES, TINY


@pytest.fixture(autouse=True)
def _still_serving(client: TestClient, packet: Packets) -> Iterator[None]:
    yield
    answer = client.post(URL, content=packet(3), headers=PACKET).json()
    assert (answer["transcript"], answer["translation"]) == SENTENCES[3]


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.parametrize(
    "kind", ["audio/wav", "application/octet-stream", "application/json", "", None]
)
def test_other_media_types(
    client: TestClient, packet: Packets, kind: str | None, accept: str
) -> None:
    headers = {"Accept": accept} | ({} if kind is None else {"Content-Type": kind})
    response = client.post(URL, content=packet(), headers=headers)
    assert_problem(response, 415, "media-type", kind or "not given")


def test_media_type_parameters_and_case_are_ignored(client: TestClient, packet: Packets) -> None:
    headers = {"Content-Type": "Application/vnd.ESRT.features; version=1"}
    assert client.post(URL, content=packet(), headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("query", "kind", "word"),
    [
        ("", "request", "src"),
        ("?src=eng", "request", "tgt"),
        ("?src=eng&tgt=xxx", "language", "xxx"),
        ("?src=eng&tgt=", "language", "''"),
        ("?src=eng&tgt=eng", "language", "both"),
        ("?src=eng&tgt=fra", "language", "French"),
        ("?src=<|eng|>&tgt=deu", "language", "<|eng|>"),
    ],
)
def test_languages(client: TestClient, packet: Packets, query: str, kind: str, word: str) -> None:
    response = client.post(f"/v1/translate{query}", content=packet(), headers=PACKET)
    assert_problem(response, 422, kind, word)


def test_a_wrong_fingerprint_is_reported_with_both_values(
    client: TestClient, packet: Packets, checkpoint: Checkpoint
) -> None:
    body = packet(fingerprint="0123456789abcdef")
    response = client.post(URL, content=body, headers=EVENTS)
    words = "0123456789abcdef", checkpoint.fingerprint
    assert_problem(response, 409, "fingerprint-mismatch", *words)


@pytest.mark.parametrize(
    ("shape", "split", "words"),
    [
        ((4, 64), "qformer", ["64", "24"]),
        ((4, 24), "adapter", ["24", "64"]),
        ((TINY.max_tokens + 1, 24), "qformer", ["51", "at most 50"]),
        ((TINY.max_tokens + 1, 64), "adapter", ["51", "at most 50"]),
    ],
)
def test_wrong_shapes(
    client: TestClient, checkpoint: Checkpoint, shape: tuple[int, int], split: str, words: list[str]
) -> None:
    values = np.ones(shape, np.float32)
    body = wire.encode(
        values, fingerprint=checkpoint.fingerprint, split=split, codec="fp16", duration_ms=0
    )
    assert_problem(client.post(URL, content=body, headers=PACKET), 422, "packet-content", *words)


@pytest.mark.parametrize("split", ["qformer", "adapter"])
def test_values_beyond_the_decoders_precision(
    settings: Settings, checkpoint: Checkpoint, split: str
) -> None:
    # int8 carries up to 127 * 65504, which float16 does not; the projector normalizes it away.
    values = np.full((2, checkpoint.config.feature_width(split)), 8e6, np.float32)
    body = wire.encode(
        values, fingerprint=checkpoint.fingerprint, split=split, codec="int8", duration_ms=0
    )
    engine = ScriptedEngine(GenerationChunk("", 1, "stop"))
    engine.started.set()
    app = create_app(settings.model_copy(update={"dtype": "float16"}), engine)
    with TestClient(app) as client:
        response = client.post(URL, content=body, headers=PACKET)
    if split == "adapter":
        assert_problem(response, 422, "packet-content", "finite")
        assert engine.seen == []
    else:
        assert response.status_code == 200
        assert np.isfinite(engine.seen[0]).all()


def test_a_learned_codec_without_statistics(client: TestClient, packet: Packets) -> None:
    header = bytearray(packet()[: wire.HEADER_BYTES - 4])
    header[6] = wire.Codec.KLT.wire_id
    payload = packet()[wire.HEADER_BYTES :]
    checksum = struct.pack("<I", zlib.crc32(payload, zlib.crc32(header)))
    response = client.post(URL, content=bytes(header) + checksum + payload, headers=PACKET)
    assert_problem(response, 400, "packet-malformed", "klt", "statistics")


def test_not_a_number(client: TestClient, packet: Packets) -> None:
    header, payload = packet()[: wire.HEADER_BYTES - 4], packet()[wire.HEADER_BYTES :]
    payload = b"\x00\x7e" + payload[2:]
    checksum = struct.pack("<I", zlib.crc32(payload, zlib.crc32(header)))
    response = client.post(URL, content=header + checksum + payload, headers=PACKET)
    assert_problem(response, 422, "packet-content", "nan")


@pytest.mark.parametrize("body", [b"", b"RIFF\0\0\0\0WAVE", b"ESRT", bytes(1 << 20)])
def test_bytes_that_are_not_a_packet(client: TestClient, body: bytes) -> None:
    assert_problem(client.post(URL, content=body, headers=PACKET), 400, "packet-malformed")


def test_damaged_packets_never_pass_or_crash(client: TestClient, packet: Packets) -> None:
    good, chance = packet(), random.Random(0)
    for _ in range(150):
        body = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
        body = body[: chance.choice([len(body), chance.randrange(len(body))])]
        response = client.post(URL, content=bytes(body), headers=PACKET)
        assert bytes(body) == good or response.status_code in (400, 413, 422), response.text


def test_a_declared_length_beyond_the_limit_is_rejected_unread(
    settings: Settings,
) -> None:
    status, text, read = _call(settings, [b"x"], {"Content-Length": "1048577"})
    assert (status, read) == (413, 0)
    assert json.loads(text)["type"] == "urn:esrt:problem:packet-too-large"


@pytest.mark.parametrize("declared", [{}, {"Content-Length": "10"}, {"Content-Length": "-1"}])
def test_a_longer_body_is_rejected_while_it_arrives(
    settings: Settings, declared: dict[str, str]
) -> None:
    status, text, read = _call(settings, [bytes(100_000)] * 100, declared)
    assert (status, read) == (413, 11)
    assert json.loads(text)["type"] == "urn:esrt:problem:packet-too-large"


def test_a_chunked_body_at_the_limit_is_read(client: TestClient) -> None:
    chunks = (bytes(1 << 16) for _ in range(16))
    assert_problem(client.post(URL, content=chunks, headers=PACKET), 400, "packet-malformed")


def test_a_body_that_stops_arriving(settings: Settings) -> None:
    async def stalled() -> tuple[int, bytes, int]:
        engine = ScriptedEngine()
        engine.state = EngineState.READY
        app = create_app(settings.model_copy(update={"upload_s": 0.05}), engine)
        chunks = [b"x", b""]

        async def receive() -> dict[str, object]:
            if chunks:
                return {"type": "http.request", "body": chunks.pop(), "more_body": True}
            await asyncio.Event().wait()
            raise AssertionError

        return await call(app, [], headers=PACKET, receive=receive)

    status, text, _ = asyncio.run(stalled())
    assert status == 408
    assert json.loads(text)["type"] == "urn:esrt:problem:upload-timeout"


def test_paths_and_methods_that_do_not_exist(client: TestClient) -> None:
    assert_problem(client.get("/v1/nothing"), 404, "not-found", "/v1/nothing")
    response = client.get("/v1/translate")
    assert_problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


def _call(settings: Settings, body: list[bytes], headers: dict[str, str]) -> tuple[int, bytes, int]:
    engine = ScriptedEngine()
    engine.state = EngineState.READY
    app = create_app(settings, engine)
    return asyncio.run(call(app, body, headers={**PACKET, **headers}))


def test_models_with_a_fixed_number_of_tokens_reject_other_numbers(
    settings: Settings, checkpoint: Checkpoint, packet: Packets
) -> None:
    config = replace(TINY, q_former=replace(TINY.q_former, stride=None, queries=8))
    preprocessor = PacketPreprocessor(replace(checkpoint, config=config), settings)
    assert asyncio.run(preprocessor.preprocess(packet(0, 8))).embeddings.shape == (8, 64)
    for tokens in (7, 9):
        with pytest.raises(PacketContentError, match="expected exactly 8"):
            asyncio.run(preprocessor.preprocess(packet(0, tokens)))


def test_small_packets_are_projected_on_the_event_loop_and_large_ones_in_a_thread(
    settings: Settings, checkpoint: Checkpoint, packet: Packets, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessor = PacketPreprocessor(checkpoint, settings)
    threads: list[int] = []

    class Projector(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            threads.append(threading.get_ident())
            return features

    async def project(*bodies: bytes) -> list[ProjectedPacket | BaseException]:
        threads.clear()
        answers = (preprocessor.preprocess(body) for body in bodies)
        return await asyncio.gather(*answers, return_exceptions=True)

    bodies = packet(0, 3), b"no packet", packet(1, 8)
    alone = [preprocessor.project(body).embeddings for body in (bodies[0], bodies[2])]
    for limit, on_loop in ((10**9, True), (-1, False)):
        monkeypatch.setattr("cloud_vllm.service.preprocessing._INLINE_MULTIPLICATIONS", limit)
        first, refused, second = asyncio.run(project(*bodies))
        assert isinstance(refused, PacketError)
        for result, expected in zip((first, second), alone, strict=True):
            assert isinstance(result, ProjectedPacket)
            np.testing.assert_array_equal(result.embeddings, expected)
        with monkeypatch.context() as patch:
            patch.setattr(preprocessor, "_projector", Projector())
            asyncio.run(project(bodies[0]))
        assert [ident == threading.get_ident() for ident in threads] == [on_loop]


@pytest.mark.parametrize("tokens", [1, 2, 50])
def test_qformer_features_are_projected_as_by_the_model(
    settings: Settings, checkpoint: Checkpoint, packet: Packets, tokens: int
) -> None:
    body = packet(0, tokens)
    with torch.inference_mode():
        expected = checkpoint.projector()(torch.from_numpy(wire.decode(body).features)).numpy()
    found = PacketPreprocessor(checkpoint, settings).project(body).embeddings
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
