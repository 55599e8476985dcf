"""The real nginx with deploy/nginx.conf in front of a gateway, over TLS."""

import asyncio
import json
import select
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from websockets.sync.client import connect

from cloud_vllm.api.app import create_app
from cloud_vllm.engines import EngineState, GenerationChunk
from cloud_vllm.settings import Settings
from esrt import wire
from esrt.arrays import Float32Array
from esrt.bundled import CHECKPOINT
from esrt.checkpoint import open_checkpoint
from esrt.languages import Language
from esrt.wire import MAX_PACKET_BYTES
from tests.cloud_vllm.helpers import (
    EVENTS,
    PACKET,
    URL,
    ScriptedEngine,
    assert_problem,
    assert_stream_adds_up,
    parse_events,
)
from tests.deploy.helpers import free_port
from tests.deploy.proxy import (
    CONNECTIONS,
    HEADER_S,
    NGINX,
    READ_S,
    TEMPORARY,
    Proxy,
    ended,
    nginx,
    send_raw,
)

pytestmark = pytest.mark.skipif(
    NGINX is None, reason="nginx is not installed. On Debian: sudo apt-get install nginx-light"
)

UPLOAD_S = 1
STREAM = "/v1/stream?src=eng&tgt=deu"


class GatedEngine(ScriptedEngine):
    """Writes the transcript; waits at the gate before the translation."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    async def generate(
        self, embeddings: Float32Array, source: Language, target: Language, *, streamed: bool = True
    ) -> AsyncGenerator[GenerationChunk, None]:
        self.open += 1
        try:
            yield GenerationChunk("hello", 1)
            while not self.gate.is_set():
                await asyncio.sleep(0.01)
            yield GenerationChunk(f"{source.tag}{target.tag}hallo", 3, "stop")
        finally:
            self.open -= 1


@pytest.fixture(scope="module")
def certificate(certificate: tuple[Path, Path]) -> Path:
    """The folder of the shared certificate, in which nginx finds chain.pem and key.pem."""
    chain, _ = certificate
    return chain.parent


@pytest.fixture(scope="module")
def engine() -> GatedEngine:
    engine = GatedEngine()
    engine.state = EngineState.READY
    engine.started.set()
    return engine


@pytest.fixture(scope="module")
def gateway(engine: GatedEngine) -> Iterator[int]:
    """The port of a gateway that serves over a real socket."""
    app = create_app(Settings(checkpoint=CHECKPOINT, upload_s=UPLOAD_S), engine)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, proxy_headers=False, ws="websockets-sansio")
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def proxy(
    gateway: int, certificate: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    with nginx(tmp_path_factory.mktemp("nginx"), gateway, certificate) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def client(proxy: Proxy) -> Iterator[httpx.Client]:
    with proxy.client() as client:
        yield client


@pytest.fixture(scope="module")
def packet() -> bytes:
    checkpoint = open_checkpoint(CHECKPOINT)
    return wire.encode(
        np.zeros((5, checkpoint.config.q_former.width), np.float32),
        fingerprint=checkpoint.fingerprint,
        split=wire.Split.QFORMER,
        codec=wire.Codec.FP16,
        duration_ms=400,
    )


def test_a_translation_through_tls(client: httpx.Client, packet: bytes) -> None:
    answer = client.post(URL, content=packet, headers=PACKET)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["transcript"], answer.json()["translation"]) == ("hello", "hallo")
    assert "max-age" in answer.headers["strict-transport-security"]
    assert answer.headers["server"] == "nginx"


def test_errors_of_the_gateway_pass_unchanged(client: httpx.Client) -> None:
    response = client.post(URL, content=b"not a packet", headers=PACKET)
    assert_problem(response, 400, "packet-malformed")


def test_request_ids_are_passed(client: httpx.Client, proxy: Proxy) -> None:
    for path in ("/healthz", "/none"):
        kept = client.get(path, headers={"X-Request-Id": f"mine{path.replace('/', '-')}"})
        assert kept.headers.get_list("x-request-id") == [f"mine{path.replace('/', '-')}"]
        made = client.get(path, headers={"X-Request-Id": 'forged"}'})
        assert len(made.headers["x-request-id"]) == 32
    lines = [json.loads(line) for line in (proxy.folder / "access.log").read_text().splitlines()]
    assert {"mine-healthz", "mine-none"} <= {line["request_id"] for line in lines}


def test_public_paths(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert "/metrics" in document["paths"]
    for path in set(document["paths"]) - {"/metrics"}:
        assert client.get(path).status_code in (200, 405), path


@pytest.mark.parametrize("path", ["/metrics", "//metrics", "/v1/../metrics", "/%6detrics"])
def test_metrics_are_not_public(proxy: Proxy, path: str) -> None:
    status, response = send_raw(proxy, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert (status, response["type"]) == (404, "urn:esrt:problem:not-found")


def test_requests_at_the_gateway(certificate: Path, tmp_path: Path) -> None:
    request = (
        b"GET /v1/models HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-For: 1.2.3.4\r\n"
        b"Upgrade: h2c\r\nConnection: upgrade\r\nAuthorization: Bearer b\r\n\r\n"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as upstream,
        nginx(tmp_path / "nginx", upstream.getsockname()[1], certificate) as proxy,
        proxy.connect() as connection,
    ):
        connection.sendall(request)
        upstream.settimeout(20)
        gateway, _ = upstream.accept()
        with gateway:
            gateway.settimeout(20)
            head = gateway.recv(1 << 16).decode()
            gateway.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK\r\n")
            # The connection to the gateway stays open for the next request.
            connection.sendall(request)
            assert gateway.recv(1 << 16)
    for line in (
        "Host: a.example",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Host: a.example",
        "X-Forwarded-Proto: https",
        "Authorization: Bearer b",
    ):
        assert f"\r\n{line}\r\n" in head
    assert "1.2.3.4" not in head
    assert "pgrade" not in head


def test_a_stream_arrives_piece_by_piece(
    client: httpx.Client, engine: GatedEngine, packet: bytes
) -> None:
    engine.gate.clear()
    try:
        with client.stream("POST", URL, content=packet, headers=EVENTS) as response:
            received = ""
            for text in response.iter_text():
                if not received:
                    # The engine still waits: nothing of the translation exists yet.
                    assert text.startswith("event: transcript")
                    assert "translation" not in text
                    engine.gate.set()
                received += text
    finally:
        engine.gate.set()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert assert_stream_adds_up(parse_events(received))["translation"] == "hallo"


def test_a_client_that_leaves_ends_the_decoding(
    client: httpx.Client, engine: GatedEngine, packet: bytes
) -> None:
    engine.gate.clear()
    try:
        with client.stream("POST", URL, content=packet, headers=EVENTS) as response:
            chunks = response.iter_raw()  # a reference: the response is closed with its iterator
            next(chunks)
            assert engine.open == 1
        end = time.monotonic() + 10
        while engine.open:
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        engine.gate.set()


def test_a_websocket(proxy: Proxy, engine: GatedEngine, packet: bytes) -> None:
    url = f"wss://127.0.0.1:{proxy.port}{STREAM}"
    engine.gate.clear()
    try:
        with connect(url, ssl=proxy.tls, proxy=None) as stream:
            stream.send(packet)
            first = json.loads(stream.recv(timeout=20))
            assert (first["event"], first["data"]) == ("transcript", {"text": "hello"})
            # Silence of more than proxy_read_timeout of the other paths.
            time.sleep(READ_S + 0.5)
            engine.gate.set()
            stream.send("end")
            events = [json.loads(message)["event"] for message in stream]
    finally:
        engine.gate.set()
    assert events == ["translation", "done"]


def test_a_websocket_that_is_refused(client: httpx.Client) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    response = client.get("/v1/stream?src=eng&tgt=eng", headers=headers)
    assert_problem(response, 422, "language")


def test_slow_heads_and_handshakes_are_cut(proxy: Proxy) -> None:
    silent, half = (socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(2))
    with silent, half, proxy.connect() as dripping:
        half.sendall(b"\x16\x03\x01")
        dripping.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nA: ")
        begin = time.monotonic()
        waiting: set[socket.socket] = {silent, half, dripping}
        while waiting and time.monotonic() < begin + HEADER_S + 10:
            with suppress(OSError):
                dripping.sendall(b"a")
            readable, _, _ = select.select(waiting, [], [], 0.1)
            waiting -= {connection for connection in readable if ended(connection)}
    assert not waiting
    assert time.monotonic() - begin >= HEADER_S - 0.5


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"A: " + b"a" * 9000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + (b"A: " + b"a" * 4000 + b"\r\n") * 12,
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"POST /v1/translate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"TRACE /v1/translate HTTP/1.1\r\nHost: a\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
    ids=["long line", "endless lines", "path", "no host", "encoding", "method", "nonsense"],
)
def test_a_head_that_is_too_long_or_malformed(proxy: Proxy, head: bytes) -> None:
    status, problem = send_raw(proxy, head)
    assert (status, problem["type"]) == (400, "urn:esrt:problem:bad-request")


def test_plain_http_is_refused(proxy: Proxy) -> None:
    response = httpx.get(f"http://127.0.0.1:{proxy.port}/healthz", trust_env=False)
    assert_problem(response, 400, "bad-request", "unencrypted")


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large(client: httpx.Client, declared: bool) -> None:
    largest = client.post(URL, content=content(MAX_PACKET_BYTES, declared), headers=PACKET)
    assert_problem(largest, 400, "packet-malformed")
    larger = client.post(URL, content=content(MAX_PACKET_BYTES + 1, declared), headers=PACKET)
    assert_problem(larger, 413, "packet-too-large")


def content(size: int, declared: bool) -> bytes | Iterator[bytes]:
    """A body of zeros, with its length declared or in chunks."""
    return bytes(size) if declared else iter([bytes(size - 1), bytes(1)])


def test_a_body_that_drips_is_refused(proxy: Proxy) -> None:
    head = (
        f"POST {URL} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n"
        f"Content-Type: {PACKET['Content-Type']}\r\n\r\n"
    )
    begin = time.monotonic()
    status, problem = send_raw(proxy, head.encode(), [b"a"] * 100)
    assert (status, problem["type"]) == (408, "urn:esrt:problem:upload-timeout")
    assert time.monotonic() - begin < UPLOAD_S + 5


def test_connections_of_one_address_are_limited(
    proxy: Proxy, engine: GatedEngine, packet: bytes
) -> None:
    engine.gate.clear()
    with ExitStack() as stack:
        stack.callback(engine.gate.set)
        client = stack.enter_context(proxy.client())
        for _ in range(CONNECTIONS):
            stack.enter_context(client.stream("POST", URL, content=packet, headers=EVENTS))
        response = client.get("/v1/models")
        assert_problem(response, 429, "too-many-requests")
        assert response.headers["retry-after"] == "1"


def test_a_gateway_that_is_gone_or_hangs(certificate: Path, tmp_path: Path) -> None:
    with nginx(tmp_path / "gone", free_port(), certificate) as proxy, proxy.client() as client:
        response = client.get("/readyz", headers={"X-Request-Id": "mine"})
    assert_problem(response, 502, "server")
    assert (response.headers["x-request-id"], response.headers["retry-after"]) == ("mine", "5")
    with (
        socket.create_server(("127.0.0.1", 0)) as hanging,
        nginx(tmp_path / "hangs", hanging.getsockname()[1], certificate) as proxy,
        proxy.client() as client,
    ):
        assert_problem(client.get("/readyz"), 504, "deadline-exceeded")


def test_logs_have_no_address_and_no_url(client: httpx.Client, proxy: Proxy) -> None:
    client.post("/v1/translate?src=eng&tgt=deu&features=secret", headers=PACKET)
    client.get("/secret")
    time.sleep(0.2)
    for name in ("access.log", "error.log"):
        text = (proxy.folder / name).read_text()
        assert "secret" not in text
        assert "127.0.0.1" not in text


def test_nothing_is_written_to_disk(proxy: Proxy) -> None:
    assert not [file for name in TEMPORARY for file in (proxy.folder / name).rglob("*")]
