"""Rejected requests: the status, the type, and that the gateway keeps serving."""

import asyncio
import json
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from starlette.testclient import TestClient

from cloud_vllm.api.app import create_app
from cloud_vllm.engines import GenerationChunk
from cloud_vllm.settings import Settings
from esrt import wire
from esrt.checkpoint import Checkpoint
from tests.cloud_vllm.helpers import (
    EVENTS,
    PACKET,
    URL,
    Packets,
    ScriptedEngine,
    assert_problem,
    call,
    ready_engine,
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
    if kind == "language" and word != "both":
        assert response.json()["remedy"] == f"Use one of: {' '.join(TINY.languages)}."


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


def test_a_transform_codec_without_tables(client: TestClient, packet: Packets) -> None:
    header = bytearray(packet()[: wire.HEADER_BYTES - 4])
    header[6] = wire.Codec.KLT.wire_id
    payload = packet()[wire.HEADER_BYTES :]
    checksum = struct.pack("<I", zlib.crc32(payload, zlib.crc32(header)))
    response = client.post(URL, content=bytes(header) + checksum + payload, headers=PACKET)
    assert_problem(response, 400, "packet-malformed", "klt", "codec tables")


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
        engine = ready_engine()
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
    engine = ready_engine()
    app = create_app(settings, engine)
    return asyncio.run(call(app, body, headers={**PACKET, **headers}))
