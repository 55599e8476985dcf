"""A stream: several packets over one websocket, answered in order.

Each binary message of the client is a packet, called a segment. Each message of the server is a
JSON object: the number of the segment, the name of an event as in server-sent events, and its data.
A limited number of segments is decoded at the same time; at the limit the server reads no more
messages. The text message ``end`` announces the last segment: the server answers all segments, then
closes the connection.
"""

import asyncio
import json
import time
from collections import Counter
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass, field

from fastapi import WebSocket
from pydantic import BaseModel
from starlette.websockets import WebSocketDisconnect, WebSocketDisconnected, WebSocketState

from cloud_vllm import problems
from cloud_vllm.auth.keys import KeyRing
from cloud_vllm.request_context import RequestContext, request_context_of
from cloud_vllm.service.gateway import GatewayService
from cloud_vllm.service.translation import Event
from cloud_vllm.settings import Settings
from cloud_vllm.telemetry.request_recorder import RequestRecorder
from esrt.errors import (
    EsrtError,
    Forbidden,
    LanguageError,
    Overloaded,
    TooManyRequests,
    Unauthorized,
)
from esrt.languages import Language

PATH = "/v1/stream"
END = "end"

# Codes of RFC 6455, 7.4.1.
_NORMAL, _UNSUPPORTED = 1000, 1003
# Time limit for a client that does not read its answers.
_SEND_S = 30.0
_RETRY_S = 5


@dataclass(eq=False)
class _Segment:
    number: int
    context: RequestContext
    # Without a size limit, because an answer has a maximum length; None marks the end.
    events: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue)


class _ClientDisconnected(Exception):
    """The connection is closed, or was silent for too long."""


class Streams:
    """The open streams of a gateway.

    Args:
        service: decodes the segments.
        settings: limits, and the accepted origins.
        keys: the valid keys; ``None`` accepts every client.
        recorder: records each segment as a request.
    """

    def __init__(
        self,
        service: GatewayService,
        settings: Settings,
        keys: KeyRing | None,
        recorder: RequestRecorder,
    ) -> None:
        self._service = service
        self._settings = settings
        self._keys = keys
        self._recorder = recorder
        self._open: Counter[str | None] = Counter()

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one connection, from its handshake to its end."""
        context = request_context_of(websocket)
        with ExitStack() as cleanup:
            try:
                direction = self._check(websocket, context.owner)
                self._open[context.owner] += 1
                cleanup.callback(self._leave, context.owner)
            except EsrtError as error:
                await websocket.send_denial_response(problems.error_response(websocket, error))
                return
            await websocket.accept()
            session = _StreamSession(
                websocket, self._service, self._settings, self._keys, self._recorder, direction
            )
            try:
                await session.run()
            except* (
                _ClientDisconnected,
                WebSocketDisconnect,  # from the client
                WebSocketDisconnected,  # an event is due while the reader closes the connection
                TimeoutError,
            ):
                context.problem = problems.CLIENT_DISCONNECTED
            states = {websocket.application_state, websocket.client_state}
            if states == {WebSocketState.CONNECTED}:
                with suppress(TimeoutError):
                    await _close(websocket, _NORMAL)

    def _check(self, websocket: WebSocket, owner: str | None) -> tuple[Language, Language]:
        # Browsers open websockets to any host, without the preflight request of CORS.
        origin = websocket.headers.get("origin")
        if origin is not None and origin not in self._settings.cors_origins:
            raise Forbidden(
                "Web pages of this origin may not open a stream.",
                "The operator can add the origin to ESRT_CORS_ORIGINS.",
            )
        query = websocket.query_params
        missing = [f"{name}: Field required" for name in ("src", "tgt") if name not in query]
        if missing:
            raise problems.incomplete("; ".join(missing))
        problems.check_single(query, "src")
        directions = self._service.directions(query["src"], query.getlist("tgt"))
        if len(directions) > 1:
            raise LanguageError(
                "A stream has one target language.", "Open one stream for each language."
            )
        self._service.check_accepting()
        slots = self._settings.max_concurrent + self._settings.queue_size
        if owner is not None and self._open[owner] >= self._settings.key_max_concurrency:
            raise TooManyRequests(
                f"This key has {self._open[owner]} streams open.", "Close a stream.", _RETRY_S
            )
        if self._open.total() >= slots:
            raise Overloaded("Too many streams are open.", "Try again later.", _RETRY_S)
        return directions[0]

    def _leave(self, owner: str | None) -> None:
        self._open[owner] -= 1
        if not self._open[owner]:
            del self._open[owner]


class _StreamSession:
    """The segments of one connection."""

    def __init__(
        self,
        websocket: WebSocket,
        service: GatewayService,
        settings: Settings,
        keys: KeyRing | None,
        recorder: RequestRecorder,
        direction: tuple[Language, Language],
    ) -> None:
        self._websocket = websocket
        self._service = service
        self._keys = keys
        self._recorder = recorder
        self._direction = direction
        self._idle_s = settings.stream_idle_s
        self._context = request_context_of(websocket)
        self._slots = asyncio.Semaphore(settings.stream_segments)
        self._under_way = 0
        self._order: asyncio.Queue[_Segment | None] = asyncio.Queue()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(self._read(group))
            await self._write()
            # After `end` the reader still waits, to notice a disconnect.
            reader.cancel()

    async def _read(self, group: asyncio.TaskGroup) -> None:
        number, ended = 0, False
        while True:
            await self._slots.acquire()
            message = await self._receive()
            body = message.get("bytes")
            if message.get("text") == END:
                if not ended:
                    self._order.put_nowait(None)
                ended = True
                self._slots.release()
            elif body is None or ended:
                await _close(self._websocket, _UNSUPPORTED, "Packets are expected, then: end.")
                raise _ClientDisconnected
            else:
                segment = _Segment(number, RequestContext())
                segment.context.id = f"{self._context.id}-{number}"
                segment.context.key = self._context.key
                self._under_way += 1
                self._order.put_nowait(segment)
                group.create_task(self._answer(segment, body))
                number += 1

    async def _receive(self) -> dict[str, object]:
        while True:
            try:
                async with asyncio.timeout(self._idle_s):
                    message = await self._websocket.receive()
            except TimeoutError:
                if not self._under_way:
                    raise _ClientDisconnected from None
            else:
                if message["type"] == "websocket.disconnect":
                    raise _ClientDisconnected
                return dict(message)

    async def _answer(self, segment: _Segment, body: object) -> None:
        """Decode a segment; an exception becomes the event ``error``."""
        assert isinstance(body, bytes)
        context, begin, status = segment.context, time.perf_counter(), 200
        try:
            with context.cleanup:
                self._check_key()
                stream = await self._service.translate_segment(body, self._direction, context)
                async with aclosing(stream):
                    async for event in stream:
                        segment.events.put_nowait(event)
        except Exception as error:
            problem = problems.from_stream_error(error, context)
            status = problem.status
            segment.events.put_nowait(("error", problem))
        except asyncio.CancelledError:
            context.problem = problems.CLIENT_DISCONNECTED
            raise
        finally:
            segment.events.put_nowait(None)
            seconds = time.perf_counter() - begin
            self._recorder.record(self._websocket.scope, context, status, seconds)

    def _check_key(self) -> None:
        entry = self._context.key
        if self._keys is not None and (entry is None or not self._keys.holds(entry)):
            raise Unauthorized("The API key has been revoked.", "Use another key.")

    async def _write(self) -> None:
        while (segment := await self._order.get()) is not None:
            while (event := await segment.events.get()) is not None:
                name, data = event
                await self._send(segment.number, name, data)
            self._under_way -= 1
            self._slots.release()

    async def _send(self, number: int, name: str, data: BaseModel) -> None:
        head = json.dumps({"segment": number, "event": name})
        async with asyncio.timeout(_SEND_S):
            await self._websocket.send_text(f'{head[:-1]}, "data": {data.model_dump_json()}}}')


async def _close(websocket: WebSocket, code: int, reason: str | None = None) -> None:
    async with asyncio.timeout(_SEND_S):
        await websocket.close(code, reason)
