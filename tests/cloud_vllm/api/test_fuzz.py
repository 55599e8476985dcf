"""Malformed requests against a real gateway process: no 5xx, no crash, no growing memory.

A quick form by default; FUZZ_REQUESTS=2000 makes as many requests.
"""

import os
import re
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from cloud_vllm.process import start_gateway
from esrt import wire
from esrt.checkpoint import Checkpoint
from tests.cloud_vllm.helpers import EVENTS, MAX_NEW_TOKENS, PACKET, URL, Packets
from tests.tiny_checkpoint import SENTENCES

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "150"))
# What the allocator may keep of a few thousand requests; a packet that leaks is 5 KB to 1 MB.
GROWTH_BYTES = 8 << 20
# How much of the requests each operation gets, and whether they keep to its description: where it
# allows whatever a path or a body can hold, none can fail to.
WELL, ILL = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
SHARES = {
    "/v1/translate": (0.3, (WELL, ILL)),
    "/v1/features": (0.2, (WELL,)),
    "/v1/features/{features}": (0.2, (WELL,)),
}


@dataclass
class Target:
    process: psutil.Process
    client: httpx.Client
    log: Path
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def port(self) -> int:
        assert self.client.base_url.port is not None
        return self.client.base_url.port

    def check(self, response: httpx.Response) -> None:
        self.statuses[response.status_code] += 1
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            assert response.headers["content-type"] == "application/problem+json"
            assert "Traceback" not in response.text


def fuzzed(examples: int) -> Any:
    return settings(
        max_examples=max(examples, 1),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def target(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    log = tmp_path_factory.mktemp("log") / "gateway.log"
    changes = {"ESRT_MAX_NEW_TOKENS": str(MAX_NEW_TOKENS), "OMP_NUM_THREADS": "1"}
    arguments = "--engine", "transformers", "--checkpoint", str(checkpoint.folder)
    with (
        start_gateway(*arguments, log=log, env={**os.environ, **changes}) as gateway,
        httpx.Client(base_url=gateway.address, timeout=20) as client,
    ):
        gateway.wait_until_ready()
        yield Target(psutil.Process(gateway.process.pid), client, log)


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with random changes, deletions, duplications and insertions."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        start = draw(st.integers(0, len(data) - 1))
        end = min(len(data), start + draw(st.sampled_from([1, 1, 1, 2, 4, 8, 64])))
        match draw(st.sampled_from(["flip", "put", "cut", "double", "end"])):
            case "flip":
                data[start] ^= draw(st.integers(1, 255))
            case "put":
                data[start:start] = draw(st.binary(min_size=1, max_size=8))
            case "cut":
                del data[start:end]
            case "double":
                data[end:end] = data[start:end]
            case "end":
                del data[start:]
    return bytes(data)


@st.composite
def packets(draw: st.DrawFn, whole: bytes) -> bytes:
    """A damaged packet, often with a correct checksum, so that later checks see the damage."""
    data = draw(mutated(whole))
    if len(data) >= wire.HEADER_BYTES and draw(st.booleans()):
        header, payload = data[: wire.HEADER_BYTES - 4], data[wire.HEADER_BYTES :]
        checksum = struct.pack("<I", zlib.crc32(payload, zlib.crc32(header)))
        data = header + checksum + payload
    return data


def flood(target: Target, packet: Packets, requests: int) -> None:
    """Send malformed requests of all kinds."""
    whole = packet(0, 7)
    head = (
        f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {PACKET['Content-Type']}\r\n"
        f"Content-Length: {len(whole)}\r\nIdempotency-Key: a\r\nConnection: close\r\n\r\n"
    )

    @fuzzed(requests * 3 // 10)
    @given(body=packets(whole))
    def damaged_packets(body: bytes) -> None:
        target.check(target.client.post(URL, content=body, headers=PACKET))

    @fuzzed(requests * 3 // 10)
    @given(sent=mutated(head.encode() + whole[:400]))
    def damaged_bytes(sent: bytes) -> None:
        with socket.create_connection(("127.0.0.1", target.port), timeout=20) as connection:
            received = b""
            try:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                while chunk := connection.recv(1 << 16):
                    received += chunk
            except (ConnectionError, OSError) as error:
                assert not isinstance(error, TimeoutError)
        for status in re.findall(rb"^HTTP/1.1 (\d+)", received):
            target.statuses[int(status)] += 1
            assert int(status) < 500, received
        target.statuses[0] += not received

    @fuzzed(requests // 20)
    @given(messages=st.lists(st.text(max_size=9) | packets(whole), max_size=4))
    def damaged_streams(messages: list[str | bytes]) -> None:
        url = f"ws://127.0.0.1:{target.port}/v1/stream?src=eng&tgt=deu"
        with connect(url, close_timeout=5) as stream:
            try:
                for message in messages:
                    stream.send(message)
                stream.send("end")
                while True:
                    answer = stream.recv(timeout=20)
                    assert not re.search(r'"status": ?5', str(answer)), answer
            except ConnectionClosed:
                target.statuses[101] += 1
            assert stream.close_code in (1000, 1003, 1007, 1009)

    @fuzzed(requests // 20)
    @given(query=st.text(st.characters(codec="ascii", min_codepoint=33), max_size=30))
    def damaged_queries(query: str) -> None:
        try:
            with connect(f"ws://127.0.0.1:{target.port}/v1/stream?{query.replace('#', '')}"):
                target.statuses[101] += 1
        except InvalidStatus as refused:
            target.statuses[refused.response.status_code] += 1
            assert refused.response.status_code < 500

    for part in (damaged_packets, damaged_bytes, damaged_streams, damaged_queries):
        part()
    _requests_out_of_the_document(target, whole, requests * 3 // 10)


def _requests_out_of_the_document(target: Target, whole: bytes, requests: int) -> None:
    media = PACKET["Content-Type"]
    schemathesis.openapi.media_type(media, st.binary(max_size=64) | packets(whole))
    schemathesis.serializer(media)(lambda context, value: value)
    document = target.client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    for found in schema.get_all_operations():
        operation = found.ok()
        # The others take nothing that could be wrong.
        share, modes = SHARES.get(operation.path, (0.0, ()))
        for mode in modes:

            @fuzzed(round(requests * share))
            @given(case=operation.as_strategy(generation_mode=mode))
            def requested(case: schemathesis.Case) -> None:
                call = case.as_transport_kwargs(base_url=str(target.client.base_url))
                call["content"] = call.pop("data", None)
                call.pop("cookies")
                try:
                    request = target.client.build_request(**call)
                except (httpx.InvalidURL, ValueError, TypeError):
                    return  # no client would send it
                target.check(target.client.send(request))

            requested()


def test_malformed_requests(target: Target, packet: Packets) -> None:
    # What the first answer loads is kept: megabytes, which malformed requests seldom get to.
    for headers in (PACKET, EVENTS):
        target.client.post(URL, content=packet(3), headers=headers).raise_for_status()
    flood(target, packet, max(REQUESTS // 4, 60))
    before = _resident(target.process)
    target.statuses.clear()
    flood(target, packet, REQUESTS)
    time.sleep(1)
    grown = _resident(target.process) - before
    print(f"{target.statuses.total()} requests, {dict(target.statuses)}; memory {grown:+,} bytes")
    assert target.statuses.total() >= 0.9 * REQUESTS
    assert grown < GROWTH_BYTES
    assert "Traceback" not in target.log.read_text()
    answer = target.client.post(URL, content=packet(3), headers=PACKET).json()
    assert (answer["transcript"], answer["translation"]) == SENTENCES[3]


def _resident(process: psutil.Process) -> int:
    found: int = process.memory_info().rss
    return found
