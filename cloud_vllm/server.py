"""uvicorn: its TLS, its limits, its answer to malformed HTTP, and its shutdown."""

import logging
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from cloud_vllm import problems
from cloud_vllm.api.websocket import END
from cloud_vllm.settings import Settings
from esrt.errors import RequestError
from esrt.wire import MAX_PACKET_BYTES

_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """A server that logs the begin of its shutdown."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the sockets, finish running requests, and close the app."""
        _log.info("Stopping.")
        await super().shutdown(sockets)


class HttpProtocol(HttpToolsProtocol):
    """HTTP whose answer to malformed requests is a problem document."""

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP request, and close the connection."""
        problem = problems.from_error(problems.malformed()).model_dump_json().encode()
        head = (
            f"HTTP/1.1 400 Bad Request\r\nContent-Type: {problems.MEDIA_TYPE}\r\n"
            f"Content-Length: {len(problem)}\r\nCache-Control: no-store\r\n"
            "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + problem)
        self.transport.close()


class StreamProtocol(WebSocketsSansIOProtocol):
    """Websockets that shut down like requests: segments under way are answered first."""

    def shutdown(self) -> None:
        """Simulate the client's last message, so that the session ends in order."""
        if self.handshake_complete and not self.close_sent:
            self.queue.put_nowait({"type": "websocket.receive", "text": END})
        else:
            super().shutdown()

    async def run_asgi(self) -> None:
        """Serve the connection; at its end, drop a client that does not read."""
        await super().run_asgi()
        if not self.writable.is_set():
            self.transport.abort()


def configure(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """The configuration of the server, with its TLS certificate loaded.

    Raises:
        RequestError: the certificate or its key cannot be used.
    """
    tls: dict[str, Any] = {}
    if settings.tls_certificate:
        tls = {"ssl_certfile": settings.tls_certificate, "ssl_keyfile": settings.tls_key}
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws=StreamProtocol,
        ws_max_size=MAX_PACKET_BYTES,
        # Packets are compressed already, and a small compressed message could fill the memory.
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=settings.shutdown_s,
        # telemetry/logs.py configures the logs.
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        **tls,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is a subclass
        raise RequestError(
            f"The TLS certificate {settings.tls_certificate} cannot be used:"
            f" {error.strerror or error}.",
            "Give --tls-certificate and --tls-key as PEM files that belong together.",
        ) from error
    return config
