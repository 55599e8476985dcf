"""Translation of one packet: the engine's chunks to text events and the complete answer."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

from pydantic import BaseModel

from cloud_vllm.engines import Engine, EngineState, GenerationChunk
from cloud_vllm.request_context import RequestContext, elapsed_ms
from cloud_vllm.schemas import (
    ConfidenceInfo,
    Delta,
    LanguageDelta,
    Status,
    Timings,
    TokenCounts,
    Translation,
)
from cloud_vllm.service.preprocessing import ProjectedPacket
from cloud_vllm.telemetry.metrics import Metrics
from esrt.checkpoint import Checkpoint
from esrt.errors import DeadlineExceeded, EngineDied, EngineFailed
from esrt.languages import Language
from esrt.prompt import TargetSplitter, TextDelta

# The name and the data of an event: `transcript`, `translation`, `done`, `error` or `waiting`.
Event = tuple[str, BaseModel]

# Maximum attempts. If the engine dies this often, the request itself may be the cause.
_ATTEMPTS = 3
# Silence of a stream after which the client hears that it waits.
_SILENCE_S = 3.0


@dataclass(frozen=True)
class TranslationJob:
    """One translation to make.

    Attributes:
        packet: the features.
        source: the language spoken.
        target: the language to write.
        arrived: arrival time of the packet, on the clock of `time.perf_counter`.
        deadline_s: time limit of the engine, in seconds.
        context: the request, which collects token counts and timings.
        streamed: whether the client receives the text while it is decoded.
        multi_target: whether the request names several target languages; each text event then
            names its own.
    """

    packet: ProjectedPacket
    source: Language
    target: Language
    arrived: float
    deadline_s: float
    context: RequestContext
    streamed: bool
    multi_target: bool = False


async def translate(
    engine: Engine, checkpoint: Checkpoint, job: TranslationJob, metrics: Metrics
) -> AsyncGenerator[Event, None]:
    """Yield the text while it is decoded, then ``done`` with the whole answer.

    After a death of the engine, the answer is decoded again from its beginning, unless the client
    has received a part of it. Closing the generator aborts the request in the engine.

    Raises:
        EngineFailed: the engine aborted the request, or died too late or too often.
        DeadlineExceeded: the engine exceeded the time limit.
    """
    deadline = asyncio.get_running_loop().time() + job.deadline_s
    target = job.target.code if job.multi_target else None
    for attempt in range(1, _ATTEMPTS + 1):
        text_sent, answer = False, _Answer(job)
        try:
            async with AsyncExitStack() as stack:
                generator = engine.generate(
                    job.packet.embeddings, job.source, job.target, streamed=job.streamed
                )
                chunks = await stack.enter_async_context(aclosing(generator))
                while True:
                    # The timeout must not span a yield: it would cancel the consumer's code.
                    async with asyncio.timeout_at(deadline):
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        break
                    if not answer.generated and chunk.tokens:
                        answer.record_first_token()
                        stack.enter_context(metrics.running())
                    for delta in answer.add(chunk):
                        text_sent = job.streamed
                        yield _text_event(delta, target)
            for delta in answer.finish():
                yield _text_event(delta, target)
            yield "done", answer.translation(checkpoint)
            return
        except EngineDied:
            if text_sent or attempt == _ATTEMPTS:
                raise
            metrics.retried()
        except TimeoutError as error:
            if engine.state is EngineState.REBUILDING:
                raise EngineFailed(
                    f"Rebuilding the engine took longer than {job.deadline_s:g} s.",
                    "Send the packet again.",
                ) from error
            raise DeadlineExceeded(
                f"The answer took longer than {job.deadline_s:g} s.",
                "Send shorter speech, or try again later.",
            ) from None


class _Answer:
    """One attempt at an answer: its text, token count and timings so far."""

    def __init__(self, job: TranslationJob) -> None:
        self._job = job
        self._splitter = TargetSplitter(job.source, job.target)
        self._first_token_ms = 0.0
        self._last: GenerationChunk | None = None
        self.generated = 0

    def record_first_token(self) -> None:
        self._first_token_ms = elapsed_ms(self._job.arrived)
        self._job.context.stages_ms.append(("first_token", self._first_token_ms))

    def add(self, chunk: GenerationChunk) -> Iterator[TextDelta]:
        self.generated += chunk.tokens
        self._job.context.generated_tokens += chunk.tokens
        self._last = chunk
        return self._splitter.feed(chunk.text)

    def finish(self) -> Iterator[TextDelta]:
        """The text held back so far.

        Raises:
            EngineFailed: the engine stopped without a reason.
        """
        if self._last is None or self._last.finish is None:
            raise EngineFailed("The engine stopped without a reason.", "Send the packet again.")
        return self._splitter.finish()

    def translation(self, checkpoint: Checkpoint) -> Translation:
        job, last = self._job, self._last
        assert last is not None
        assert last.finish is not None
        job.context.stages_ms.append(("generate", elapsed_ms(job.arrived)))
        return Translation(
            src=job.source.code,
            tgt=job.target.code,
            transcript=self._splitter.transcript,
            translation=self._splitter.translation,
            model=checkpoint.config.name,
            fingerprint=checkpoint.fingerprint,
            finish=last.finish,
            confidence=ConfidenceInfo(
                transcript=_rounded(last.confidence.transcript),
                translation=_rounded(last.confidence.translation),
                threshold=checkpoint.confidence_threshold,
            ),
            tokens=TokenCounts(features=len(job.packet.embeddings), generated=self.generated),
            timings_ms=Timings(
                decode=round(job.packet.decode_ms, 3),
                project=round(job.packet.project_ms, 3),
                first_token=round(self._first_token_ms, 3),
                total=round(elapsed_ms(job.arrived), 3),
            ),
        )


def final_text_events(answer: Translation, *, multi_target: bool) -> Iterator[Event]:
    """The text of a whole answer as events, one for each part that is not empty."""
    target = answer.tgt if multi_target else None
    if answer.transcript:
        yield _text_event(TextDelta("transcript", answer.transcript), target)
    if answer.translation:
        yield _text_event(TextDelta("translation", answer.translation), target)


def _text_event(delta: TextDelta, target: str | None) -> Event:
    if target is None:
        return delta.part, Delta(text=delta.text)
    return delta.part, LanguageDelta(text=delta.text, tgt=target)


async def merge_streams(
    streams: list[AsyncGenerator[Event, None]], engine: Engine
) -> AsyncGenerator[Event, None]:
    """Interleave the events of one translation or several; the first error ends all of them.

    While nothing comes, for example because the engine is rebuilt, yield ``waiting`` with the state
    of the engine every few seconds.
    """
    # Without a size limit, because an answer has a maximum length; None marks the end.
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
        running = len(streams)
        while running:
            try:
                # The timeout must not span a yield: it would cancel the consumer's code.
                async with asyncio.timeout(_SILENCE_S):
                    item = await queue.get()
            except TimeoutError:
                item = "waiting", Status(status=engine.state)
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def collect_answers(stream: AsyncGenerator[Event, None]) -> list[Translation]:
    """The whole answers among the events."""
    async with aclosing(stream):
        return [data async for _, data in stream if isinstance(data, Translation)]


def _rounded(logprob: float | None) -> float | None:
    return None if logprob is None else round(logprob, 4)
