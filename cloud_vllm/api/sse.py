"""Server-sent events: the streamed form of an answer."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import Request
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from cloud_vllm import problems
from cloud_vllm.request_context import RequestContext
from cloud_vllm.service.translation import Event

MEDIA_TYPE = "text/event-stream"

# Line breaks of `str.splitlines` that JSON does not escape. `format_sse_event` would break the
# data at U+2028 and the like, and a client would join the parts with another character.
_LINE_BREAKS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}


def accepts_events(request: Request) -> bool:
    """Whether the client prefers server-sent events to JSON, by the weights in ``Accept``.

    Of equal weights the media type that is named decides, not a wildcard.
    """
    weights: dict[str, float] = {}
    for item in ",".join(request.headers.getlist("accept")).split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        weights[kind] = min((_weight(part) for part in parameters), default=1.0)

    def weight(kind: str) -> float:
        names = (kind, f"{kind.partition('/')[0]}/*", "*/*")
        return next((weights[name] for name in names if name in weights), 0.0)

    events, json = weight(MEDIA_TYPE), weight("application/json")
    return events > json or (events == json > 0 and MEDIA_TYPE in weights)


def _weight(parameter: str) -> float:
    """The weight in a parameter such as ``q=0.5``; 1 for other parameters (RFC 9110, 12.4.2)."""
    name, _, value = parameter.partition("=")
    if name.strip() != "q":
        return 1.0
    return float(value) if re.fullmatch(r"\s*(0(\.\d{0,3})?|1(\.0{0,3})?)", value) else 0.0


class EventStream(StreamingResponse):
    """A response of server-sent events: ``transcript``, ``translation``, ``done``, ``error``."""

    media_type = MEDIA_TYPE

    def __init__(self, stream: AsyncGenerator[Event, None], context: RequestContext) -> None:
        self._events = encode_sse(stream, context)
        # A proxy that buffers the answer would undo the streaming.
        super().__init__(
            self._events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )

    async def whole(self) -> Response:
        """Collect the events for a client of HTTP/1.0, whose answers have no chunks."""
        async with aclosing(self._events):
            body = b"".join([event async for event in self._events])
        return Response(body, media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})

    async def stream_response(self, send: Send) -> None:
        """Send the events; after a disconnect, abort the engine's request at once."""
        async with aclosing(self._events):
            await super().stream_response(send)


async def encode_sse(
    stream: AsyncGenerator[Event, None], context: RequestContext
) -> AsyncGenerator[bytes]:
    """Encode events as server-sent events; an exception becomes the event ``error``."""
    try:
        async with aclosing(stream):
            async for name, data in stream:
                yield _encode(name, data)
    except Exception as error:
        yield _encode("error", problems.from_stream_error(error, context))
    except (asyncio.CancelledError, GeneratorExit):
        context.problem = problems.CLIENT_DISCONNECTED
        raise


def _encode(name: str, data: BaseModel) -> bytes:
    text = data.model_dump_json().translate(_LINE_BREAKS)
    return format_sse_event(event=name, data_str=text)
