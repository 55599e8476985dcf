"""Server-sent events: the streamed form of an answer."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import Request
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Send

from cloud_vllm import problems
from cloud_vllm.request_context import RequestContext
from cloud_vllm.service.translation import Event

MEDIA_TYPE = "text/event-stream"

# Line breaks of `str.splitlines` that JSON does not escape. `format_sse_event` would break the
# data at U+2028 and the like, and a client would join the parts with another character.
_LINE_BREAKS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}


def accepts_events(request: Request) -> bool:
    """Whether the client accepts server-sent events."""
    accepted = ",".join(request.headers.getlist("accept")).split(",")
    return any(item.partition(";")[0].strip().lower() == MEDIA_TYPE for item in accepted)


class EventStream(StreamingResponse):
    """A response of server-sent events: ``transcript``, ``translation``, ``done``, ``error``."""

    media_type = MEDIA_TYPE

    def __init__(self, stream: AsyncGenerator[Event, None], context: RequestContext) -> None:
        self._events = encode_sse(stream, context)
        # A proxy that buffers the answer would undo the streaming.
        super().__init__(
            self._events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )

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
