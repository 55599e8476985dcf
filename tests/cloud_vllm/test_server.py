"""TLS, and requests over real sockets."""

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from cloud_vllm.api.app import create_app
from cloud_vllm.engines import GenerationChunk
from cloud_vllm.server import configure
from cloud_vllm.settings import Settings
from esrt.errors import RequestError
from esrt.wire import MAX_PACKET_BYTES
from tests.cloud_vllm import helpers
from tests.cloud_vllm.helpers import PACKET, URL, ready_engine

END = GenerationChunk("hello<|eng|><|deu|>hallo", 3, "stop")


@contextmanager
def served(settings: Settings) -> Iterator[int]:
    """A served gateway: its port."""
    with helpers.served(settings, ready_engine(END)) as (port, _):
        yield port


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
            configure(create_app(changed, ready_engine(END)), changed)
    with pytest.raises(ValidationError, match="tls_certificate needs tls_key"):
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
