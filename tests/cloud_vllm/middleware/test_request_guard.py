"""Security headers, CORS, exposure, TLS, time limits of a request."""

import asyncio
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from cloud_vllm import listener
from cloud_vllm.api.app import create_app
from cloud_vllm.engines import EngineState, GenerationChunk
from cloud_vllm.middleware import request_guard
from cloud_vllm.server import configure
from cloud_vllm.settings import Settings
from esrt.errors import RequestError
from esrt.wire import MAX_PACKET_BYTES
from tests.cloud_vllm import helpers
from tests.cloud_vllm.helpers import PACKET, URL, Packets, ScriptedEngine, assert_problem, call

END = GenerationChunk("hello<|eng|><|deu|>hallo", 3, "stop")
ORIGIN = "https://talk.example"


def engine() -> ScriptedEngine:
    engine = ScriptedEngine(END)
    engine.state = EngineState.READY
    engine.started.set()
    return engine


@contextmanager
def served(settings: Settings) -> Iterator[int]:
    """A served gateway: its port."""
    with helpers.served(settings, engine()) as (port, _):
        yield port


def test_every_answer_has_the_security_headers(settings: Settings, packet: Packets) -> None:
    with TestClient(create_app(settings, engine())) as client:
        answers = [
            client.get("/healthz"),
            client.get("/none"),
            client.post(URL, content=packet(), headers=PACKET),
            client.post(URL, content=b"", headers=PACKET),
        ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert "strict-transport-security" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers


def test_only_allowed_origins_get_cors_headers(settings: Settings) -> None:
    preflight = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    with TestClient(create_app(settings, engine())) as client:
        answer = client.options("/v1/translate", headers=preflight)
        assert answer.status_code == 405
        assert "access-control-allow-origin" not in answer.headers
    changed = settings.model_copy(update={"cors_origins": (ORIGIN,)})
    with TestClient(create_app(changed, engine())) as client:
        answer = client.options("/v1/translate", headers=preflight)
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        other = client.options("/v1/translate", headers=preflight | {"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_no_keys_are_needed_on_loopback(host: str) -> None:
    listener.check_exposure(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.2", "localhost.example"])
def test_no_keys_beyond_loopback_must_be_allowed_explicitly(host: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--allow-anonymous"):
        listener.check_exposure(Settings(host=host))
    listener.check_exposure(Settings(host=host, allow_anonymous=True))
    listener.check_exposure(Settings(host=host, key_file=tmp_path / "keys"))


def test_a_request_beyond_all_limits_ends(
    settings: Settings, packet: Packets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_guard, "_SEND_S", 0.0)
    hanging = ScriptedEngine(None)
    hanging.state = EngineState.READY
    app = create_app(settings.model_copy(update={"upload_s": 0.1, "deadline_s": 60}), hanging)
    app.user_middleware[0].kwargs["settings"] = settings.model_copy(
        update={"upload_s": 0.1, "deadline_s": 0.1}
    )
    status, text, _ = asyncio.run(call(app, [packet()], headers=PACKET))
    assert (status, hanging.open) == (504, 0)
    assert b"deadline-exceeded" in text


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", chain],
        check=True, capture_output=True,
    )  # fmt: skip
    return chain, key


def test_tls(settings: Settings, certificate: tuple[Path, Path]) -> None:
    chain, key = certificate
    update = {"tls_certificate": chain, "tls_key": key}
    with served(settings.model_copy(update=update)) as port:
        context = ssl.create_default_context(cafile=str(chain))
        with httpx.Client(verify=context, trust_env=False) as client:
            answer = client.get(f"https://127.0.0.1:{port}/healthz")
        assert answer.status_code == 200
        assert "max-age" in answer.headers["strict-transport-security"]
        assert "server" not in answer.headers
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)


def test_tls_files_that_cannot_be_used(settings: Settings, certificate: tuple[Path, Path]) -> None:
    chain, key = certificate
    for files in [(chain, chain), (key, key), (chain.with_name("none"), key)]:
        update = dict(zip(("tls_certificate", "tls_key"), files, strict=True))
        changed = settings.model_copy(update=update)
        with pytest.raises(RequestError, match="--tls-certificate"):
            configure(create_app(changed, engine()), changed)
    with pytest.raises(ValidationError, match="belong together"):
        Settings(tls_certificate=chain)


def test_a_rejection_is_sent_before_the_body_has_arrived(settings: Settings) -> None:
    head = f"POST {URL} HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: "
    with served(settings) as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(5)
        client.sendall(f"{head}{MAX_PACKET_BYTES // 2}\r\n\r\n".encode())
        for _ in range(16):
            client.sendall(b"a" * (MAX_PACKET_BYTES // 32))
            time.sleep(0.01)
        assert client.recv(65536).startswith(b"HTTP/1.1 415")
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_slow_upload_times_out(settings: Settings) -> None:
    head = f"POST {URL} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n"
    head += f"Content-Type: {PACKET['Content-Type']}\r\n\r\n"
    changed = settings.model_copy(update={"upload_s": 0.3})
    with served(changed) as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head.encode())
        client.settimeout(5)
        assert client.recv(65536).startswith(b"HTTP/1.1 408")


def test_there_are_no_interactive_pages(settings: Settings) -> None:
    with TestClient(create_app(settings, engine())) as client:
        assert_problem(client.get("/docs"), 404, "not-found")
