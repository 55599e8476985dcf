"""The HTTP service: feature packets in, transcript and translation out."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from cloud_vllm import problems
from cloud_vllm.admission import Admission, check_media_type, read_body
from cloud_vllm.engines import Engine, EngineState, create_engine
from cloud_vllm.schemas import LanguageInfo, ModelInfo, Models, Problem, Status, Translation
from cloud_vllm.settings import Settings
from cloud_vllm.translation import EventStream, Job, translate, whole
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.errors import (
    DeadlineExceeded,
    EngineFailed,
    EsrtError,
    FingerprintMismatch,
    LanguageError,
    MediaTypeError,
    NotReady,
    PacketContentError,
    PacketError,
    PacketTooLarge,
    RequestError,
    UploadTimeout,
)
from esrt.languages import LANGUAGES, Language, direction
from esrt.wire import MAX_PACKET_BYTES, MEDIA_TYPE, Codec, Split

_log = logging.getLogger(__name__)

_EVENTS = "text/event-stream"
_ERRORS = problems.responses(
    PacketError, UploadTimeout, FingerprintMismatch, PacketTooLarge, MediaTypeError, LanguageError,
    PacketContentError, RequestError, EngineFailed, NotReady, DeadlineExceeded,
)  # fmt: skip
_PACKET_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One feature packet, docs/wire-format.md.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """The gateway for one checkpoint.

    The engine loads in the background once the app runs, so that ``/healthz`` answers meanwhile.

    Args:
        settings: what to serve and how.
        engine: what decodes; by default what the settings name.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    checkpoint = open_checkpoint(settings.checkpoint)
    gateway = _Gateway(checkpoint, settings, engine or create_engine(checkpoint, settings))
    app = FastAPI(
        title="ESRT gateway",
        version="1",
        summary="Speech features in, transcript and translation out.",
        lifespan=gateway.lifespan,
    )
    problems.install(app)
    app.get("/healthz", tags=["state"])(gateway.healthz)
    app.get("/readyz", tags=["state"], responses=problems.responses(NotReady))(gateway.readyz)
    app.get("/v1/models", tags=["translation"])(gateway.models)
    app.post(
        "/v1/translate",
        tags=["translation"],
        response_model=Translation,
        responses={200: {"content": {_EVENTS: {"schema": {"type": "string"}}}}, **_ERRORS},
        openapi_extra=_PACKET_BODY,
    )(gateway.translate)
    _describe_problems(app)
    return app


class _Gateway:
    """The operations, and what they share."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings, engine: Engine) -> None:
        self._checkpoint = checkpoint
        self._settings = settings
        self._engine = engine
        self._admission = Admission(checkpoint, settings)
        self._failure: EsrtError | None = None

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Load the engine while the app runs; leave nothing of it behind."""
        loading = asyncio.create_task(self._load())
        try:
            yield
        finally:
            await self._engine.close()
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading

    async def healthz(self) -> Status:
        """The process lives; says nothing of the engine."""
        return Status(status="alive")

    async def readyz(self) -> Status:
        """The engine is loaded and lives."""
        self._check_ready()
        return Status(status="ready")

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
            codecs=[codec.value for codec in Codec],
            languages=[
                LanguageInfo(code=code, name=LANGUAGES[code].name, endonym=LANGUAGES[code].endonym)
                for code in config.languages
            ],
        )
        return Models(models=[model])

    async def translate(
        self,
        request: Request,
        src: Annotated[str, Query(description="Language spoken, ISO 639-3.", examples=["eng"])],
        tgt: Annotated[str, Query(description="Language to write.", examples=["deu"])],
    ) -> Response:
        """Translate one feature packet.

        The answer is JSON or, to `Accept: text/event-stream`, the events `transcript` and
        `translation` with pieces of text, then `done` with what the JSON answer would have been,
        or `error` with a problem document.
        """
        check_media_type(request)
        source, target = self._direction(src, tgt)
        self._check_ready()
        body = await read_body(request, self._settings.upload_s)
        arrived = time.perf_counter()
        admitted = await run_in_threadpool(self._admission.admit, body)
        job = Job(admitted, source, target, arrived, self._settings.deadline_s)
        parts = translate(self._engine, self._checkpoint, job)
        if _wants_events(request):
            return EventStream(parts)
        answer = await _unless_disconnected(request, asyncio.create_task(whole(parts)))
        return Response(answer.model_dump_json(), media_type="application/json")

    async def _load(self) -> None:
        try:
            await self._engine.start()
        except EsrtError as error:
            if self._engine.state is not EngineState.CLOSED:
                self._failure = error
                _log.error("%s", error, exc_info=error.__cause__)
        except Exception as error:
            self._failure = EngineFailed("The engine failed to start.", "Read the gateway's log.")
            _log.error("The engine failed to start.", exc_info=error)

    def _direction(self, src: str, tgt: str) -> tuple[Language, Language]:
        pair, served = direction(src, tgt), self._checkpoint.config.languages
        for language in pair:
            if language.code not in served:
                raise LanguageError(
                    f"{self._checkpoint.config.name} was not trained for {language.name}.",
                    f"Use two of: {' '.join(served)}.",
                )
        return pair

    def _check_ready(self) -> None:
        if self._failure is not None:
            raise NotReady(self._failure.cause, self._failure.remedy)
        state = self._engine.state
        if state is EngineState.LOADING:
            raise NotReady("The engine is still loading.", "Ask again in a few seconds.")
        if state is EngineState.CLOSED:
            raise NotReady("The service is shutting down.", "Ask another replica, or later.")
        if state is not EngineState.READY:
            raise NotReady("The engine has died.", "Restart the service.")


def _wants_events(request: Request) -> bool:
    accepted = ",".join(request.headers.getlist("accept")).split(",")
    return any(item.partition(";")[0].strip().lower() == _EVENTS for item in accepted)


async def _unless_disconnected(request: Request, answer: asyncio.Task[Translation]) -> Translation:
    """Wait for the answer, but not longer than the client does.

    Raises:
        ClientDisconnect: the client hung up; the answer's task has been cancelled.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.create_task(disconnected())
    try:
        await asyncio.wait((answer, watch), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        for task in (answer, watch):
            task.cancel()
        await asyncio.gather(answer, watch, return_exceptions=True)


def _describe_problems(app: FastAPI) -> None:
    """Add the problem schema to the OpenAPI document, and take out FastAPI's own 422 answers."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemas = generate().setdefault("components", {}).setdefault("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            schemas["Problem"] = Problem.model_json_schema()
        document: dict[str, Any] = generate()
        return document

    app.openapi = openapi  # type: ignore[method-assign]
