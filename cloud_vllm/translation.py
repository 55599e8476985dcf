"""One answer: from admitted features through the engine to text deltas and their sum."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Send

from cloud_vllm import problems
from cloud_vllm.admission import Admitted
from cloud_vllm.engines import Engine, Piece
from cloud_vllm.schemas import Delta, Timings, TokenCounts, Translation
from esrt.checkpoint import Checkpoint
from esrt.errors import DeadlineExceeded, EngineFailed, EsrtError
from esrt.languages import Language
from esrt.prompt import TargetSplitter, TextDelta

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is to be translated, and by when.

    Attributes:
        admitted: the features.
        source: the language spoken.
        target: the language to write.
        arrived: when the packet had arrived, on `time.perf_counter`.
        seconds: how long the engine may take.
    """

    admitted: Admitted
    source: Language
    target: Language
    arrived: float
    seconds: float


async def translate(
    engine: Engine, checkpoint: Checkpoint, job: Job
) -> AsyncGenerator[TextDelta | Translation, None]:
    """Yield the text as it is decoded, then the whole answer.

    Closing the generator aborts the request in the engine.

    Raises:
        EngineFailed: the engine broke off.
        DeadlineExceeded: it took too long.
    """
    embeddings = job.admitted.embeddings
    splitter = TargetSplitter(job.source, job.target)
    generated, first_token, finish = 0, 0.0, None
    async with aclosing(engine.generate(embeddings, job.source, job.target)) as pieces:
        async for piece in _in_time(pieces, job.seconds):
            if generated == 0:
                first_token = _ms(job.arrived)
            generated += piece.tokens
            finish = piece.finish
            for delta in splitter.feed(piece.text):
                yield delta
    if finish is None:
        raise EngineFailed("The engine ended without a reason.", "Send the packet again.")
    for delta in splitter.finish():
        yield delta
    yield Translation(
        src=job.source.code,
        tgt=job.target.code,
        transcript=splitter.transcript,
        translation=splitter.translation,
        model=checkpoint.config.name,
        fingerprint=checkpoint.fingerprint,
        finish=finish,
        tokens=TokenCounts(features=len(embeddings), generated=generated),
        timings_ms=Timings(
            decode=round(job.admitted.decode_ms, 3),
            project=round(job.admitted.project_ms, 3),
            first_token=first_token,
            total=_ms(job.arrived),
        ),
    )


async def whole(parts: AsyncGenerator[TextDelta | Translation, None]) -> Translation:
    """The last part, which is the whole answer."""
    async with aclosing(parts):
        async for part in parts:
            if isinstance(part, Translation):
                return part
    raise AssertionError("a translation ends with its answer")


class EventStream(StreamingResponse):
    """The answer as server-sent events: ``transcript``, ``translation``, ``done`` or ``error``."""

    media_type = "text/event-stream"

    def __init__(self, parts: AsyncGenerator[TextDelta | Translation, None]) -> None:
        self._events = _events(parts)
        # A proxy that collects the answer before it passes it on would undo the streaming.
        super().__init__(
            self._events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )

    async def stream_response(self, send: Send) -> None:
        """Send; when the client is gone, stop the engine at once instead of at collection."""
        async with aclosing(self._events):
            await super().stream_response(send)


async def _events(parts: AsyncGenerator[TextDelta | Translation, None]) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(parts):
            async for part in parts:
                if isinstance(part, Translation):
                    yield _event("done", part)
                else:
                    yield _event(part.part, Delta(text=part.text))
    except Exception as error:
        if not isinstance(error, EsrtError) or error.__cause__ is not None:
            _log.exception("A stream ended with an error.")
        yield _event("error", problems.from_error(error))


def _event(name: str, data: BaseModel) -> bytes:
    # JSON leaves U+2028 and its like as they are, at which `format_sse_event` would break the
    # line; a client would then join the parts with another character.
    text = data.model_dump_json().translate(_LINE_BREAKS)
    return format_sse_event(event=name, data_str=text)


# All that str.splitlines breaks at and JSON does not escape.
_LINE_BREAKS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}


async def _in_time(pieces: AsyncIterator[Piece], seconds: float) -> AsyncIterator[Piece]:
    end = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            # Around the wait only: a timeout that spans a yield would cancel whoever runs then.
            async with asyncio.timeout_at(end):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise DeadlineExceeded(
                f"The answer took longer than {seconds:g} s.", "Send shorter speech, or later."
            ) from None
        yield piece


def _ms(since: float) -> float:
    return round((time.perf_counter() - since) * 1e3, 3)
