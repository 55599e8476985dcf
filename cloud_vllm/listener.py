"""The socket side of the service: where it listens, TLS, and connections that say nothing."""

import asyncio
import ipaddress
import socket
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from cloud_vllm.api.websocket import END
from cloud_vllm.settings import Settings
from esrt.errors import RequestError
from esrt.wire import MAX_PACKET_BYTES

# How often the server looks around while nothing happens; uvicorn by itself does so ten times a
# second, at the cost of the processor's sleep and of warm caches.
_LOOK_S = 1.0
# A client that has connected says what it wants within this time, and in so many bytes.
HEADER_S = 10.0
MAX_HEADER_BYTES = 32 << 10


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 with limits on the time of a request's head and on the size of all but its body.

    uvicorn has none with this parser: a connection that sends nothing, a letter now and then, or
    headers without end would be held for good.
    """

    # Bytes since the head or the message began, but those of a body that the gateway counts.
    _counted = 0
    _in_body = False
    _timer: asyncio.TimerHandle | None = None
    _upgraded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._head_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, unless there have been too many of the kind."""
        self._counted += len(data)
        super().data_received(data)
        if self._upgraded:
            return
        # Beside a body come the sizes of its chunks, trailers, or all of it once it is refused.
        if self._counted > (MAX_PACKET_BYTES if self._in_body else MAX_HEADER_BYTES):
            self.transport.abort()
        elif self.timeout_keep_alive_task is None and (
            self.cycle is None or self.cycle.response_complete
        ):
            # Blank lines between requests, which the parser skips, or a body that was refused:
            # uvicorn takes them for activity.
            self._await_head()

    def on_message_begin(self) -> None:
        """A request begins, the connection's first or another."""
        super().on_message_begin()
        self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers, which come after the body has begun, mean nothing here."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A request's head has arrived; its body has a time limit of its own.

        Raises:
            ValueError: the head is too long, though it came at once; it is answered with 400.
        """
        headers = sum(len(name) + len(value) for name, value in self.headers)
        if len(self.url) + headers > MAX_HEADER_BYTES:
            raise ValueError("The request's head is too long.")
        self._head_arrived()
        self._counted, self._in_body = 0, True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, whose length the gateway looks at, until it has answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._counted -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has arrived as a whole."""
        self._counted, self._in_body = 0, False
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection on; it is no longer this protocol's."""
        self._upgraded = True
        super().handle_websocket_upgrade()

    def _await_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_S, self.transport.abort)

    def _head_arrived(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class StreamProtocol(WebSocketsSansIOProtocol):
    """Websockets that shut down like requests: what is under way is answered first.

    It reads one message, and then no more until the gateway asks for it.
    """

    def shutdown(self) -> None:
        """Tell the gateway what a client would that has no more to send."""
        if self.handshake_complete and not self.close_sent:
            self.queue.put_nowait({"type": "websocket.receive", "text": END})
        else:
            super().shutdown()

    async def run_asgi(self) -> None:
        """Serve the connection, and leave a client that does not read what it was sent."""
        await super().run_asgi()
        if not self.writable.is_set():
            self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's server, woken by the signal that ends it instead of asking for it all the time."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signalled = asyncio.Event()

    async def main_loop(self) -> None:
        """Serve until a signal says otherwise; keeps the time that the Date header tells."""
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._signalled.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal that ends the server."""
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._signalled.set)


def configure(gateway: FastAPI, settings: Settings) -> uvicorn.Config:
    """The server's configuration, its TLS certificate loaded.

    Raises:
        RequestError: the certificate or its key cannot be used.
    """
    tls: dict[str, Any] = {}
    if settings.tls_certificate:
        tls = {"ssl_certfile": settings.tls_certificate, "ssl_keyfile": settings.tls_key}
    config = uvicorn.Config(
        gateway,
        http=Protocol,
        ws=StreamProtocol,
        ws_max_size=MAX_PACKET_BYTES,
        # Packets do not get smaller, and what is packed well could fill the memory.
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=settings.shutdown_s,
        # The gateway's own: see logs.py.
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        **tls,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise RequestError(
            f"The TLS certificate {settings.tls_certificate} cannot be used:"
            f" {error.strerror or error}.",
            "Give --tls-certificate and --tls-key as PEM files that belong together.",
        ) from error
    return config


def check_exposure(settings: Settings) -> None:
    """An open gateway stays on the machine, unless somebody has said otherwise.

    Raises:
        RequestError: it would listen to the network and let everyone in.
    """
    if settings.allows_anonymous_by_default and not _loopback(settings.host):
        raise RequestError(
            f"Without API keys, everyone who reaches {settings.host or 'any address'} could use"
            " this gateway.",
            "Give --key-file (see: keys create), or say --allow-anonymous.",
        )


def listen(settings: Settings) -> socket.socket:
    """The listening socket.

    Raises:
        RequestError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise RequestError(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}.",
            "Choose another --port, or end what listens there.",
        ) from error


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
