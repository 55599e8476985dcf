"""A minimal HTTP/1.1 client, because the load generator shares its cores with the servers.

Requests are built before the measurement. During it, a response is parsed only to find its end.
"""

import asyncio
import json
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

_HEAD_END, _LAST_CHUNK = b"\r\n\r\n", b"0\r\n\r\n"


@dataclass(frozen=True)
class Reply:
    """A response, and its times on `time.perf_counter`.

    Attributes:
        status: HTTP status; 0 if the connection broke before the response was complete.
        head: status line and headers.
        body: bytes as received, chunk lengths included.
        sent: when the request was sent, or was due.
        first: when the first event had arrived; equal to ``done`` without events.
        done: when the response was complete.
    """

    status: int
    head: bytes
    body: bytes
    sent: float
    first: float
    done: float

    def header(self, name: str) -> str:
        """Value of a header, or an empty string."""
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name:
                return value.strip()
        return ""

    @property
    def is_stream(self) -> bool:
        """Whether the body consists of server-sent events."""
        return self.header("content-type").startswith("text/event-stream")

    def answer(self) -> dict[str, Any] | None:
        """The gateway's translation, from JSON or the event ``done``; ``None`` without one."""
        text = self.body
        if self.is_stream:
            text = self.body.partition(b"event: done\ndata: ")[2].partition(b"\n")[0]
        return cast("dict[str, Any]", json.loads(text)) if self.status == 200 and text else None

    def problem(self) -> dict[str, Any]:
        """The problem document, from JSON or the event ``error``; empty without one."""
        text = self.body.partition(b"event: error\ndata: ")[2].partition(b"\n")[0]
        if not text and self.status >= 400:
            text = self.body
        try:
            return cast("dict[str, Any]", json.loads(text)) if text else {}
        except ValueError:
            return {}


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._waiting: asyncio.Future[tuple[int, int]] | None = None
        self._data = bytearray()
        self._start, self._first = -1, 0.0
        self._end: int | None = None

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError("closed before the response was complete"))

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._first == 0.0 and b"\ndata: " in self._data:
            self._first = perf_counter()
        if self._start < 0 and (end := self._data.find(_HEAD_END)) >= 0:
            self._start = end + len(_HEAD_END)
            head = bytes(self._data[:end]).lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0].strip()
            self._end = self._start + int(length) if length else None
        if self._start < 0 or self._waiting is None or self._waiting.done():
            return
        whole = self._data.endswith(_LAST_CHUNK) if self._end is None else (
            len(self._data) >= self._end
        )  # fmt: skip
        if whole:
            self._waiting.set_result((int(self._data[9:12]), self._start))

    async def send(self, request: bytes, due: float) -> Reply:
        assert self._transport is not None
        self._data, self._start, self._first, self._end = bytearray(), -1, 0.0, None
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        status, start = await self._waiting
        done = perf_counter()
        head, body = bytes(self._data[: start - 4]), bytes(self._data[start:])
        return Reply(status, head, body, due, self._first or done, done)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Client:
    """Connections to a port of loopback, kept open and reused; an async context manager."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[_Connection] = []
        self._all: list[_Connection] = []

    async def __aenter__(self) -> "Client":
        """Connections are opened when they are needed."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close all connections."""
        for connection in self._all:
            connection.close()

    async def send(self, request: bytes, due: float | None = None) -> Reply:
        """Send a request and wait for the complete response.

        A broken connection gives a reply with status 0.
        """
        due = perf_counter() if due is None else due
        connection = None
        try:
            connection = await self._connection()
            return await connection.send(request, due)
        except OSError:
            now = perf_counter()
            return Reply(0, b"", b"", due, now, now)
        finally:
            if connection is not None and connection.usable:
                self._free.append(connection)

    async def abandon(self, request: bytes, seconds: float) -> None:
        """Send a request, and close the connection after some seconds or at the end."""
        connection = await self._connection()
        try:
            async with asyncio.timeout(seconds):
                await connection.send(request, perf_counter())
        except (TimeoutError, OSError):
            pass
        finally:
            connection.close()

    async def _connection(self) -> _Connection:
        while self._free:
            if (connection := self._free.pop()).usable:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
        self._all = [other for other in self._all if other.usable] + [connection]
        return connection
