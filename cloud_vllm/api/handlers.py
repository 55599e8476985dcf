"""Handlers of the HTTP routes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import Header, Path, Query, Request, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from cloud_vllm.api.idempotency import AnswerStore, replay
from cloud_vllm.api.request_body import check_media_type, check_no_body, read_body
from cloud_vllm.api.sse import EventStream, accepts_events
from cloud_vllm.problems import check_single
from cloud_vllm.request_context import RequestContext, elapsed_ms, request_context_of
from cloud_vllm.schemas import (
    KeptFeatures,
    LanguageInfo,
    ModelInfo,
    Models,
    Status,
    TranslateParams,
    Translations,
)
from cloud_vllm.service.gateway import GatewayService
from cloud_vllm.service.translation import collect_answers
from cloud_vllm.settings import Settings
from cloud_vllm.telemetry.metrics import CONTENT_TYPE
from esrt.languages import LANGUAGES
from esrt.wire import MAX_PACKET_BYTES, Split

_T = TypeVar("_T")

# Interval at which expired packets and answers are erased.
_SWEEP_S = 1.0


class Handlers:
    """The handlers of all routes of one gateway."""

    def __init__(
        self,
        service: GatewayService,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._settings = settings
        self._answers = AnswerStore(settings, clock)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Erase expired packets and answers while the app runs, and all answers at its end."""
        sweeper = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweeper.cancel()
            self._answers.clear()

    async def healthz(self) -> Status:
        """The process is alive; the engine may be in any state."""
        return Status(status="alive")

    async def readyz(self) -> Status:
        """The engine is loaded and alive."""
        self._service.check_ready()
        return Status(status="ready")

    async def metrics(self) -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(self._service.metrics.render(), media_type=CONTENT_TYPE)

    async def models(self) -> Models:
        """The model served; the fingerprint of a device's artifact must equal its fingerprint."""
        checkpoint = self._service.checkpoint
        config = checkpoint.config
        model = ModelInfo(
            id=config.name,
            fingerprint=checkpoint.fingerprint,
            splits={split.value: config.feature_width(split) for split in Split},
            max_tokens=config.max_tokens,
            max_seconds=config.max_seconds,
            max_packet_bytes=MAX_PACKET_BYTES,
            codecs=[codec.value for codec in self._service.preprocessor.codecs],
            languages=[
                LanguageInfo(code=code, name=LANGUAGES[code].name, endonym=LANGUAGES[code].endonym)
                for code in config.languages
            ],
        )
        return Models(models=[model])

    async def translate(
        self,
        request: Request,
        params: Annotated[TranslateParams, Query()],
        idempotency_key: Annotated[
            str | None,
            Header(
                pattern=r"^[!-~]{1,255}$",
                description="Any text that identifies this request. The same request with the same"
                " key within minutes gets the same answer, decoded once.",
            ),
        ] = None,
    ) -> Response:
        """Translate one feature packet, into one language or several.

        The answer is JSON. With `Accept: text/event-stream` the answer is a stream: the events
        `transcript` and `translation` with parts of the text, then `done` with the content of the
        JSON answer, or `error` with a problem document. HTTP/1.0 has no chunks, so its clients get
        all events at once. While no text comes for some seconds, for example because the engine is
        being rebuilt, the event `waiting` repeats the state of the engine in `status`.

        Several languages are decoded at the same time. Their JSON answer is a list, `answers`. In
        a stream their events are interleaved; each text event names its language in `tgt`, and
        every language has its own `done`. If one language fails, the whole request fails.
        """
        check_single(request.query_params, "src", "features")
        if params.features is None:
            check_media_type(request)
        else:
            check_no_body(request)
        service = self._service
        directions = service.directions(params.src, params.tgt)
        service.check_accepting()
        context = request_context_of(request)
        context.cleanup.enter_context(service.limits.admit(context.owner, len(directions)))
        body = b"" if params.features is not None else await self._receive(request, context)
        arrived, claim = time.perf_counter(), None
        if idempotency_key is not None:
            identity = [body, (params.features or "").encode("utf-8", "surrogateescape")]
            identity += [f"{source.code}-{target.code}".encode() for source, target in directions]
            claim = await self._answers.claim(
                context.owner, idempotency_key, identity, context.cleanup
            )
        streamed = accepts_events(request)
        if claim is not None and claim.answers is not None:
            stream = replay(claim.answers, multi_target=len(directions) > 1)
        else:
            if params.features is not None:
                body = service.packets.get(params.features, context.owner)
            packet = await service.preprocess(body, context)
            stream = service.translate(packet, directions, arrived, context, streamed=streamed)
            if claim is not None:
                stream = claim.record_answers(stream, len(directions))
        if streamed:
            events = EventStream(stream, context)
            if request.scope["http_version"] == "1.0":
                return await _unless_disconnected(request, events.whole())
            return events
        answers = await _unless_disconnected(request, collect_answers(stream))
        if len(directions) == 1:
            return _json(answers[0])
        order = [target.code for _, target in directions]
        answers.sort(key=lambda answer: order.index(answer.tgt))
        return _json(Translations(answers=answers))

    async def keep_features(self, request: Request) -> Response:
        """Keep a packet in memory for a few minutes, for translations without another upload."""
        check_media_type(request)
        context = request_context_of(request)
        context.cleanup.enter_context(self._service.limits.admit(context.owner))
        body = await self._receive(request, context)
        packet = await self._service.preprocess(body, context)
        stored = KeptFeatures(
            features=self._service.packets.put(body, context.owner),
            expires_in_s=self._settings.packet_ttl_s,
            tokens=len(packet.embeddings),
        )
        return _json(stored, status=201)

    async def delete_features(
        self, request: Request, features: Annotated[str, Path(description="The handle.")]
    ) -> Response:
        """Erase a kept packet before it expires."""
        self._service.packets.delete(features, request_context_of(request).owner)
        return Response(status_code=204)

    async def _receive(self, request: Request, context: RequestContext) -> bytes:
        begin = time.perf_counter()
        body = await read_body(request, self._settings.upload_s)
        context.bytes_in = len(body)
        context.stages_ms.append(("upload", elapsed_ms(begin)))
        return body

    async def _sweep(self) -> None:
        while True:
            self._service.packets.sweep()
            self._answers.sweep()
            await asyncio.sleep(_SWEEP_S)


def _json(body: BaseModel, status: int = 200) -> Response:
    return Response(body.model_dump_json(), status, media_type="application/json")


async def _unless_disconnected(request: Request, answer: Coroutine[Any, Any, _T]) -> _T:
    """Await the answer, but cancel it when the client disconnects.

    Raises:
        ClientDisconnect: the client disconnected.
    """
    task, disconnected = asyncio.current_task(), False
    assert task

    async def watch() -> None:
        nonlocal disconnected
        while (await request.receive())["type"] != "http.disconnect":
            pass
        disconnected = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await answer
    except asyncio.CancelledError:
        # As in `asyncio.timeout`: another cancellation of this task takes precedence.
        if not disconnected or task.uncancel():
            raise
    finally:
        watcher.cancel()
    # Not inside the `except` block: the cancellation's traceback would keep the features alive.
    raise ClientDisconnect
