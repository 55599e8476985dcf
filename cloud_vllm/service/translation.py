"""One answer: from admitted features through the engine to text deltas and their sum."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Send

from cloud_vllm import problems
from cloud_vllm.engines import Engine, EngineState, GenerationChunk
from cloud_vllm.request_context import RequestContext
from cloud_vllm.schemas import (
    ConfidenceInfo,
    Delta,
    LanguageDelta,
    Timings,
    TokenCounts,
    Translation,
)
from cloud_vllm.service.preprocessing import ProjectedPacket
from cloud_vllm.telemetry.metrics import Metrics
from esrt.checkpoint import Checkpoint
from esrt.errors import DeadlineExceeded, EngineDied, EngineFailed, EsrtError
from esrt.languages import Language
from esrt.prompt import TargetSplitter, TextDelta

# A server-sent event's name and data.
Event = tuple[str, BaseModel]

# How often an answer is decoded before its engine's deaths are put down to the answer itself.
_ATTEMPTS = 3

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
        exchange: the request, to which what it takes is added.
        streamed: whether the client sees the text while it is decoded.
    """

    projected_packet: ProjectedPacket
    source: Language
    target: Language
    arrived: float
    seconds: float
    context: RequestContext
    streamed: bool


async def translate(
    engine: Engine, checkpoint: Checkpoint, job: Job, metrics: Metrics
) -> AsyncGenerator[TextDelta | Translation, None]:
    """Yield the text as it is decoded, then the whole answer.

    Where the engine dies, the next one decodes the answer from its beginning, unless the client
    has seen some of it. Closing the generator aborts the request in the engine.

    Raises:
        EngineFailed: the engine broke off, or died too late or too often.
        DeadlineExceeded: it took too long.
    """
    end = asyncio.get_running_loop().time() + job.seconds
    for attempt in range(1, _ATTEMPTS + 1):
        seen = False
        try:
            async with aclosing(_decode(engine, checkpoint, job, metrics, end)) as parts:
                async for part in parts:
                    seen = job.streamed
                    yield part
            return
        except EngineDied:
            if seen or attempt == _ATTEMPTS:
                raise
            metrics.retried()
        except DeadlineExceeded as error:
            if engine.state is EngineState.REBUILDING:
                raise EngineFailed(
                    f"The engine is being rebuilt, which took longer than {job.seconds:g} s.",
                    "Send the packet again.",
                ) from error
            raise


async def _decode(
    engine: Engine, checkpoint: Checkpoint, job: Job, metrics: Metrics, end: float
) -> AsyncGenerator[TextDelta | Translation, None]:
    embeddings = job.projected_packet.embeddings
    splitter = TargetSplitter(job.source, job.target)
    generated, first_token, last = 0, 0.0, None
    context = job.context
    async with AsyncExitStack() as stack:
        generator = engine.generate(embeddings, job.source, job.target, streamed=job.streamed)
        pieces = await stack.enter_async_context(aclosing(generator))
        async for piece in _in_time(pieces, job.seconds, end):
            if generated == 0 and piece.tokens:
                first_token = _ms(job.arrived)
                context.stages_ms.append(("first_token", first_token))
                stack.enter_context(metrics.running())
            generated += piece.tokens
            context.generated_tokens += piece.tokens
            last = piece
            for delta in splitter.feed(piece.text):
                yield delta
    if last is None or last.finish is None:
        raise EngineFailed("The engine ended without a reason.", "Send the packet again.")
    for delta in splitter.finish():
        yield delta
    context.stages_ms.append(("generate", _ms(job.arrived)))
    yield Translation(
        src=job.source.code,
        tgt=job.target.code,
        transcript=splitter.transcript,
        translation=splitter.translation,
        model=checkpoint.config.name,
        fingerprint=checkpoint.fingerprint,
        finish=last.finish,
        confidence=ConfidenceInfo(
            transcript=_rounded(last.confidence.transcript),
            translation=_rounded(last.confidence.translation),
        ),
        tokens=TokenCounts(features=len(embeddings), generated=generated),
        timings_ms=Timings(
            decode=round(job.projected_packet.decode_ms, 3),
            project=round(job.projected_packet.project_ms, 3),
            first_token=first_token,
            total=_ms(job.arrived),
        ),
    )


async def events(
    parts: AsyncGenerator[TextDelta | Translation, None], target: str | None
) -> AsyncGenerator[Event, None]:
    """What a translation yields as events; with a target, each piece of text names it."""
    async with aclosing(parts):
        async for part in parts:
            if isinstance(part, Translation):
                yield "done", part
            else:
                yield _text_event(part, target)


def final_text_events(answer: Translation, *, several: bool) -> Iterator[Event]:
    """A whole answer's text as events, one for each part that is not empty."""
    target = answer.tgt if several else None
    if answer.transcript:
        yield _text_event(TextDelta("transcript", answer.transcript), target)
    if answer.translation:
        yield _text_event(TextDelta("translation", answer.translation), target)


def _text_event(delta: TextDelta, target: str | None) -> Event:
    if target is None:
        return delta.part, Delta(text=delta.text)
    return delta.part, LanguageDelta(text=delta.text, tgt=target)


async def merge_streams(streams: list[AsyncGenerator[Event, None]]) -> AsyncGenerator[Event, None]:
    """The events of several translations as they come; the first error ends all of them."""
    # As long as all answers at most, so it needs no bound.
    queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

    async def pump(stream: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(stream):
                async for event in stream:
                    queue.put_nowait(event)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        for _ in streams:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answers(stream: AsyncGenerator[Event, None]) -> list[Translation]:
    """The whole answers among the events."""
    async with aclosing(stream):
        return [data async for _, data in stream if isinstance(data, Translation)]


class EventStream(StreamingResponse):
    """The answer as server-sent events: ``transcript``, ``translation``, ``done`` or ``error``."""

    media_type = "text/event-stream"

    def __init__(self, stream: AsyncGenerator[Event, None], context: RequestContext) -> None:
        self._events = encode_sse(stream, context)
        # A proxy that collects the answer before it passes it on would undo the streaming.
        super().__init__(
            self._events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )

    async def stream_response(self, send: Send) -> None:
        """Send; when the client is gone, stop the engine at once instead of at collection."""
        async with aclosing(self._events):
            await super().stream_response(send)


async def encode_sse(
    stream: AsyncGenerator[Event, None], context: RequestContext
) -> AsyncGenerator[bytes]:
    """Encode events as server-sent events; an error becomes the event ``error``."""
    try:
        async with aclosing(stream):
            async for name, data in stream:
                yield _event(name, data)
    except Exception as error:
        if not isinstance(error, EsrtError) or error.__cause__ is not None:
            _log.exception("A stream ended with an error.")
        problem = problems.from_error(error)
        context.problem = problems.name(problem)
        yield _event("error", problem)
    except (asyncio.CancelledError, GeneratorExit):
        context.problem = problems.CLIENT_GONE
        raise


def _event(name: str, data: BaseModel) -> bytes:
    # JSON leaves U+2028 and its like as they are, at which `format_sse_event` would break the
    # line; a client would then join the parts with another character.
    text = data.model_dump_json().translate(_LINE_BREAKS)
    return format_sse_event(event=name, data_str=text)


# All that str.splitlines breaks at and JSON does not escape.
_LINE_BREAKS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}


async def _in_time(
    pieces: AsyncIterator[GenerationChunk], seconds: float, end: float
) -> AsyncIterator[GenerationChunk]:
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


def _rounded(logprob: float | None) -> float | None:
    return None if logprob is None else round(logprob, 4)
