"""Clients of every kind: old versions, HEAD, weights, encodings, slashes, malformed requests."""

import json
import logging
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.testclient import TestClient
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from cloud_vllm.api.sse import accepts_events
from cloud_vllm.engines import GenerationChunk
from cloud_vllm.settings import Settings
from cloud_vllm.telemetry import logs
from tests.cloud_vllm.helpers import (
    EVENTS,
    PACKET,
    URL,
    Packets,
    assert_problem,
    assert_stream_adds_up,
    parse_events,
    ready_engine,
    served,
)

TEXT = GenerationChunk("hello", 1), GenerationChunk("<|eng|><|deu|>hallo", 3, "stop")


@pytest.fixture(scope="module")
def port(settings: Settings) -> Iterator[int]:
    """The port of a gateway with real sockets."""
    with served(settings, ready_engine(*TEXT)) as (port, _):
        yield port


def exchange(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Send bytes, and read head and body until the gateway closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(request)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


def post(version: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([f"POST {URL} HTTP/{version}", *lines, "", ""]).encode() + body


@pytest.mark.parametrize("headers", [PACKET, EVENTS])
def test_http_1_0_gets_a_body_without_chunks(
    port: int, packet: Packets, headers: dict[str, str]
) -> None:
    head, body = exchange(port, post("1.0", packet(), headers))
    assert head.startswith(b"HTTP/1.1 200")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert f"content-length: {len(body)}".encode() in head.lower()
    if headers is EVENTS:
        assert b"content-type: text/event-stream" in head.lower()
        done = assert_stream_adds_up(parse_events(body.decode()))
    else:
        done = json.loads(body)
    assert (done["transcript"], done["translation"]) == ("hello", "hallo")


def test_http_1_1_gets_chunks(port: int, packet: Packets) -> None:
    head, _ = exchange(port, post("1.1", packet(), {"Host": "a", **EVENTS}))
    assert b"transfer-encoding: chunked" in head.lower()


@pytest.mark.parametrize(
    "path",
    ["/healthz", "/readyz", "/metrics", "/v1/models", "/openapi.json", "/none", "/v1/translate"],
)
def test_head_has_the_status_of_get_and_no_body(port: int, path: str) -> None:
    answers = {
        method: exchange(
            port, f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        )
        for method in ("GET", "HEAD")
    }
    (got, _), (head, body) = answers["GET"], answers["HEAD"]
    assert head.splitlines()[0] == got.splitlines()[0]
    assert body == b""
    assert re.findall(rb"(?i)content-type: .*", head) == re.findall(rb"(?i)content-type: .*", got)


@pytest.mark.parametrize("path", ["/healthz/", "/v1/models/", "/v1/translate/?src=eng&tgt=deu"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_slash_at_the_end_is_another_path(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path, follow_redirects=False)
    assert_problem(answer, 404, "not-found", path.partition("?")[0])
    assert "location" not in answer.headers


@pytest.mark.parametrize(
    ("accept", "streamed"),
    [
        ("text/event-stream", True),
        ("text/event-stream;q=0", False),
        ("text/event-stream; q=0.000, */*", False),
        ("application/json, text/event-stream;q=0.5", False),
        ("application/json;q=0.5, text/event-stream;q=0.6", True),
        ("Text/Event-Stream ; Q=0.6 , application/json;q=0.5", True),
        ("text/event-stream, application/json", True),
        ("text/event-stream;q=0.4, application/*;q=0.5", False),
        ("text/event-stream;q=0.4, */*;q=0.5", False),
        ("text/event-stream;charset=utf-8;q=0.9, application/json;q=0.1", True),
        ("text/event-stream, */*;q=0.1", True),
        ("text/*", True),
        ("text/*, application/json", False),
        ("*/*", False),
        ("", False),
        ("text/html", False),
        ("text/event-stream;q=2", False),
        ("text/event-stream;q=", False),
    ],
)
def test_accept(client: TestClient, packet: Packets, accept: str, streamed: bool) -> None:
    answer = client.post(URL, content=packet(), headers={**PACKET, "Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream") == streamed


@given(st.text(alphabet=st.characters(max_codepoint=255)))
def test_any_accept_is_read(text: str) -> None:
    scope: dict[str, Any] = {"type": "http", "headers": [(b"accept", text.encode("latin-1"))]}
    assert accepts_events(Request(scope)) in (True, False)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("src=eng&tgt=deu&src=eng", "src"),
        ("src=eng&src=deu&tgt=deu", "src"),
        ("src=eng&tgt=deu&features=a&features=b", "features"),
    ],
)
def test_a_parameter_that_is_given_twice(
    client: TestClient, packet: Packets, query: str, name: str
) -> None:
    answer = client.post(f"/v1/translate?{query}", content=packet(), headers=PACKET)
    assert_problem(answer, 422, "request", name, "more than once")


def test_languages_are_named_as_people_do(client: TestClient, packet: Packets) -> None:
    def translate(query: str) -> Any:
        return client.post(f"/v1/translate?{query}", content=packet(), headers=PACKET).json()

    for query in (
        "src=en&tgt=de",
        "src=en-GB&tgt=DEU",
        "src=English&tgt=deutsch",
        "src=EN&tgt=ger",
    ):
        answer = translate(query)
        assert (answer["src"], answer["tgt"]) == ("eng", "deu")
    for query in ("src=eng&tgt=de,deu", "src=eng&tgt=German&tgt=de-AT"):
        assert "twice" in translate(query)["detail"]
    assert "both 'eng'" in translate("src=en&tgt=English")["detail"]
    assert "Did you mean deu (German)?" in translate("src=en&tgt=Germn")["remedy"]
    assert "not trained for French" in translate("src=en&tgt=fr")["detail"]


@pytest.mark.parametrize("path", [URL, "/v1/features"])
@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "Identity, gzip", "x"])
def test_an_encoded_body(client: TestClient, packet: Packets, path: str, encoding: str) -> None:
    headers = {**PACKET, "Content-Encoding": encoding}
    answer = client.post(path, content=packet(), headers=headers)
    assert_problem(answer, 415, "media-type", encoding.lower())


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_a_body_that_says_that_it_is_plain(
    client: TestClient, packet: Packets, encoding: str
) -> None:
    headers = {**PACKET, "Content-Encoding": encoding}
    assert client.post(URL, content=packet(), headers=headers).status_code == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET /health z HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n: a\r\n\r\n",
        b"POST /v1/features HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the begin of a TLS handshake
    ],
)
def test_malformed_http(port: int, request_: bytes) -> None:
    head, body = exchange(port, request_)
    assert head.startswith(b"HTTP/1.1 400 Bad Request")
    assert b"content-type: application/problem+json" in head.lower()
    assert f"content-length: {len(body)}".encode() in head.lower()
    problem = json.loads(body)
    assert (problem["type"], problem["status"]) == ("urn:esrt:problem:bad-request", 400)
    assert problem["detail"] and problem["remedy"]


def test_a_refused_websocket_is_no_error_of_the_log(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    logs.configure("text")
    root.handlers += before[0]  # of pytest
    try:
        for query in ("src=eng", "src=eng&tgt=xxx", "src=eng&src=eng&tgt=deu"):
            with (
                pytest.raises(InvalidStatus) as caught,
                connect(f"ws://127.0.0.1:{port}/v1/stream?{query}"),
            ):
                pass
            assert caught.value.response.status_code == 422
    finally:
        root.handlers[:], root.level = before
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_the_document_declares_the_api_key(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    (name,) = document["components"]["securitySchemes"]
    scheme = document["components"]["securitySchemes"][name]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert {name: []} in document["security"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert (operation.get("security") == []) == (path in ("/healthz", "/readyz"))
