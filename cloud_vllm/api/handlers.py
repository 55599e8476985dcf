"""What the gateway does for each of its paths."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from cloud_vllm.api.idempotency import AnswerStore, replay
from cloud_vllm.api.translate_params import TranslateParams
from cloud_vllm.engines import Engine, EngineState, Supervisor
from cloud_vllm.request_context import RequestContext, request_context_of
from cloud_vllm.schemas import (
    KeptFeatures,
    LanguageInfo,
    ModelInfo,
    Models,
    Status,
    Translation,
    Translations,
)
from cloud_vllm.service.limits import Limits
from cloud_vllm.service.packet_store import PacketStore
from cloud_vllm.service.preprocessing import (
    PacketPreprocessor,
    ProjectedPacket,
    check_media_type,
    check_no_body,
    read_body,
)
from cloud_vllm.service.translation import (
    Event,
    EventStream,
    Job,
    answers,
    events,
    merge_streams,
    translate,
)
from cloud_vllm.settings import Settings
from cloud_vllm.telemetry.metrics import CONTENT_TYPE, Metrics
from esrt.checkpoint import Checkpoint
from esrt.errors import EsrtError, LanguageError, NotReady
from esrt.languages import LANGUAGES, Language, check_trained, direction
from esrt.wire import MAX_PACKET_BYTES, Split

EVENTS = EventStream.media_type

# How late an expired packet is erased at most, where nothing else asks for one before.
_SWEEP_S = 1.0

_log = logging.getLogger(__name__)


class GatewayService:
    """The operations, and what they share."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: Settings,
        engine: Engine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._checkpoint = checkpoint
        self._settings = settings
        self._engine = engine
        self._admission = PacketPreprocessor(checkpoint, settings)
        self._limits = Limits(settings, clock)
        self._features = PacketStore(settings, clock)
        self._answers = AnswerStore(settings, clock)
        self.observed = Metrics(self._limits)
        kept = self.observed.gauge("esrt_features_bytes", "Bytes of packets kept in memory.")
        kept.set_function(lambda: self._features.size)
        if isinstance(engine, Supervisor):
            rebuilds = self.observed.gauge("esrt_engine_rebuilds", "Engines that were replaced.")
            rebuilds.set_function(lambda: engine.rebuilds)
        self._failed = False

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Load the engine while the app runs; leave nothing of it behind."""
        tasks = [asyncio.create_task(self._load()), asyncio.create_task(self._sweep())]
        try:
            yield
        finally:
            self._features.clear()
            self._answers.clear()
            await self._engine.close()
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def healthz(self) -> Status:
        """The process lives; says nothing of the engine."""
        return Status(status="alive")

    async def readyz(self) -> Status:
        """The engine is loaded and lives."""
        self.check_ready()
        if self._engine.state is EngineState.REBUILDING:
            raise NotReady("The engine is being rebuilt.", "Ask another replica, or again soon.")
        return Status(status="ready")

    async def metrics(self) -> Response:
        """The gateway's figures in Prometheus' text format."""
        return Response(self.observed.render(), media_type=CONTENT_TYPE)

    async def models(self) -> Models:
        """What is served: an edge device's artifact must have the same fingerprint."""
        config = self._checkpoint.config
        model = ModelInfo(
            id=config.name,
            fingerprint=self._checkpoint.fingerprint,
            splits={split.value: config.feature_width(split.value) for split in Split},
            max_tokens=config.max_tokens,
            max_seconds=config.max_seconds,
            max_packet_bytes=MAX_PACKET_BYTES,
            codecs=[codec.value for codec in self._admission.codecs],
            languages=[
                LanguageInfo(code=code, name=LANGUAGES[code].name, endonym=LANGUAGES[code].endonym)
                for code in config.languages
            ],
        )
        return Models(models=[model])

    async def translate(self, request: Request) -> Response:
        """Translate one feature packet, into one language or several.

        The answer is JSON or, to `Accept: text/event-stream`, the events `transcript` and
        `translation` with pieces of text, then `done` with what the JSON answer would have been,
        or `error` with a problem document.

        Several languages are decoded at once. Their JSON answer is a list, `answers`; as events,
        their pieces are interleaved, each with its `tgt`, and every language has a `done` of its
        own. Where one fails, the whole request does.
        """
        asked = TranslateParams.from_request(request)
        features, key = asked.features, asked.idempotency_key
        if features is None:
            check_media_type(request)
        else:
            check_no_body(request)
        pairs = self.directions(asked.src, asked.tgt)
        self.check_ready()
        context = request_context_of(request)
        context.cleanup.enter_context(self._limits.admit(context.owner, len(pairs)))
        body = b"" if features is not None else await self._receive(request, context)
        arrived, claim = time.perf_counter(), None
        if key is not None:
            whole = [body, (features or "").encode("utf-8", "surrogateescape")]
            whole += [f"{source.code}-{target.code}".encode() for source, target in pairs]
            claim = await self._answers.claim(context.owner, key, whole, context.cleanup)
        streamed = _wants_events(request)
        if claim is not None and claim.answers is not None:
            stream = replay(claim.answers, several=len(pairs) > 1)
        else:
            if features is not None:
                body = self._features.get(features, context.owner)
            projected_packet = await self._admit(body, context)
            seconds = self._settings.deadline_s
            stream = self._decoded(
                [
                    Job(projected_packet, *pair, arrived, seconds, context, streamed)
                    for pair in pairs
                ]
            )
            if claim is not None:
                stream = claim.fulfil(stream, len(pairs))
        if streamed:
            return EventStream(stream, context)
        found = await _unless_disconnected(request, answers(stream))
        if len(pairs) == 1:
            return _json(found[0])
        order = [target.code for _, target in pairs]
        return _json(Translations(answers=sorted(found, key=lambda one: order.index(one.tgt))))

    async def keep_features(self, request: Request) -> Response:
        """Keep a packet in memory for a few minutes, for translations without another upload."""
        check_media_type(request)
        context = request_context_of(request)
        context.cleanup.enter_context(self._limits.admit(context.owner))
        body = await self._receive(request, context)
        projected_packet = await self._admit(body, context)
        kept = KeptFeatures(
            features=self._features.put(body, context.owner),
            expires_in_s=self._settings.packet_ttl_s,
            tokens=len(projected_packet.embeddings),
        )
        return _json(kept, status=201)

    async def delete_features(
        self, request: Request, features: Annotated[str, PathParameter(description="The handle.")]
    ) -> Response:
        """Erase a kept packet before it expires."""
        self._features.delete(features, request_context_of(request).owner)
        return Response(status_code=204)

    async def segment(
        self, body: bytes, pair: tuple[Language, Language], context: RequestContext
    ) -> AsyncGenerator[Event, None]:
        """The events of one packet's answer, as `translate` gives them.

        Raises:
            EsrtError: the packet is refused, or there is no place for it.
        """
        self.check_ready()
        context.cleanup.enter_context(self._limits.admit(context.owner))
        context.bytes_in = len(body)
        arrived = time.perf_counter()
        projected_packet = await self._admit(body, context)
        seconds = self._settings.deadline_s
        return self._decoded(
            [Job(projected_packet, *pair, arrived, seconds, context, streamed=True)]
        )

    def _decoded(self, jobs: list[Job]) -> AsyncGenerator[Event, None]:
        """The events of one answer, or of several at once."""
        streams = [
            events(
                translate(self._engine, self._checkpoint, job, self.observed),
                job.target.code if len(jobs) > 1 else None,
            )
            for job in jobs
        ]
        return merge_streams(streams) if len(streams) > 1 else streams[0]

    async def _receive(self, request: Request, context: RequestContext) -> bytes:
        begin = time.perf_counter()
        body = await read_body(request, self._settings.upload_s)
        context.bytes_in = len(body)
        context.stages_ms.append(("upload", (time.perf_counter() - begin) * 1e3))
        return body

    async def _admit(self, body: bytes, context: RequestContext) -> ProjectedPacket:
        projected_packet = await self._admission.admit(body)
        context.feature_tokens = len(projected_packet.embeddings)
        context.stages_ms += [
            ("decode", projected_packet.decode_ms),
            ("project", projected_packet.project_ms),
        ]
        return projected_packet

    async def _sweep(self) -> None:
        while True:
            self._features.sweep()
            self._answers.sweep()
            await asyncio.sleep(_SWEEP_S)

    async def _load(self) -> None:
        try:
            await self._engine.start()
        except EsrtError as error:
            if self._engine.state is not EngineState.CLOSED:
                self._failed = True
                _log.error("%s", error, exc_info=error.__cause__)
        except Exception as error:
            self._failed = True
            _log.error("The engine failed to start.", exc_info=error)

    def directions(self, src: str, tgt: list[str]) -> list[tuple[Language, Language]]:
        """The directions that codes name.

        Raises:
            LanguageError: one is none, or not served.
        """
        codes, config = ",".join(tgt).split(","), self._checkpoint.config
        pairs = [direction(src, code) for code in codes]
        for pair in pairs:
            check_trained(config.name, config.languages, pair)
        if len(set(codes)) < len(codes):
            raise LanguageError("tgt names a language twice.", "Name each of them once.")
        return pairs

    def check_ready(self) -> None:
        """See whether requests are taken on; they also are while the engine is rebuilt.

        Raises:
            NotReady: they are not.
        """
        if self._failed:
            # Why is logged; it may name paths, and anyone may ask here.
            raise NotReady("The engine failed to start.", "Read the gateway's log.")
        state = self._engine.state
        if state is EngineState.LOADING:
            raise NotReady("The engine is still loading.", "Ask again in a few seconds.")
        if state is EngineState.CLOSED:
            raise NotReady("The service is shutting down.", "Ask another replica, or later.")
        if state is EngineState.FAILED:
            raise NotReady("The engine has died.", "Ask another replica, or later.")


def _json(body: BaseModel, status: int = 200) -> Response:
    return Response(body.model_dump_json(), status, media_type="application/json")


def _wants_events(request: Request) -> bool:
    accepted = ",".join(request.headers.getlist("accept")).split(",")
    return any(item.partition(";")[0].strip().lower() == EVENTS for item in accepted)


async def _unless_disconnected(
    request: Request, answer: Coroutine[Any, Any, list[Translation]]
) -> list[Translation]:
    """Wait for the answer, but not longer than the client does.

    Raises:
        ClientDisconnect: the client hung up; the answer has been cancelled.
    """
    waiting, gone = asyncio.current_task(), False
    assert waiting

    async def disconnected() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        waiting.cancel()

    watch = asyncio.create_task(disconnected())
    try:
        return await answer
    except asyncio.CancelledError:
        # As asyncio.timeout does: whoever else cancels this task means more than the answer.
        if not gone or waiting.uncancel():
            raise
    finally:
        watch.cancel()
    # Here and not above, or the cancellation's traceback would keep the features as its context.
    raise ClientDisconnect
