"""The HTTP service: feature packets in, transcript and translation out."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from cloud_vllm import problems
from cloud_vllm.api import websocket
from cloud_vllm.api.handlers import EVENTS, GatewayService
from cloud_vllm.api.translate_params import TranslateParams
from cloud_vllm.auth.keys import KeyRing
from cloud_vllm.engines import Engine, Supervisor, create_engine
from cloud_vllm.middleware.request_guard import Authentication, RequestGuard
from cloud_vllm.schemas import KeptFeatures, Problem, Translation, Translations
from cloud_vllm.settings import Settings
from cloud_vllm.telemetry.request_recorder import RequestRecorder
from esrt.checkpoint import open_checkpoint
from esrt.errors import (
    DeadlineExceeded,
    EngineFailed,
    EsrtError,
    FingerprintMismatch,
    Forbidden,
    IdempotencyKeyReused,
    LanguageError,
    MediaTypeError,
    NotReady,
    Overloaded,
    PacketContentError,
    PacketError,
    PacketTooLarge,
    RequestError,
    TooManyRequests,
    Unauthorized,
    UnknownFeatures,
    UploadTimeout,
)
from esrt.wire import MEDIA_TYPE

if TYPE_CHECKING:
    from cloud_vllm.telemetry.tracing import Traces

_ERRORS: tuple[type[EsrtError], ...] = (
    PacketError, UploadTimeout, FingerprintMismatch, PacketTooLarge, MediaTypeError,
    PacketContentError, RequestError, NotReady, Unauthorized, Forbidden, TooManyRequests,
    Overloaded,
)  # fmt: skip
_TRANSLATION_ERRORS: tuple[type[EsrtError], ...] = (
    LanguageError, UnknownFeatures, IdempotencyKeyReused, EngineFailed, DeadlineExceeded,
)  # fmt: skip


class _Direct(APIRoute):
    """A route to what reads its request itself and answers with a response.

    FastAPI documents it, but does not look for parameters, a body and dependencies each time, which
    is close to a tenth of what this process does for a lone request.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The operation itself."""
        operation: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return operation


def create_app(
    settings: Settings,
    engine: Engine | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """The gateway for one checkpoint.

    The engine loads in the background once the app runs, so that ``/healthz`` answers meanwhile.

    Args:
        settings: what to serve and how.
        engine: what decodes; by default what the settings name, rebuilt when it dies.
        clock: seconds, for limits and for what expires.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        RequestError: the key file is missing or damaged.
    """
    keys = KeyRing(settings.key_file) if settings.key_file else None
    checkpoint = open_checkpoint(settings.checkpoint)
    if engine is None:
        engine = Supervisor(lambda: create_engine(checkpoint, settings), checkpoint, settings)
    gateway = GatewayService(checkpoint, settings, engine, clock)
    traces = _traces(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with gateway.lifespan(app):
            yield
        if traces:
            await asyncio.to_thread(traces.close)

    app = FastAPI(
        title="ESRT gateway",
        version="1",
        summary="Speech features in, transcript and translation out.",
        lifespan=lifespan,
        # The interactive pages would load scripts of a third party into this origin.
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Authentication, keys=keys)
    if settings.cors_origins:
        # Outside of the authentication, because a browser's preflight request carries no key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "X-Request-Id"],
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    recorder = RequestRecorder(gateway.observed, traces)
    app.add_middleware(RequestGuard, settings=settings, recorder=recorder)
    problems.install(app)
    # First what is asked most: routes are tried in turn.
    app.router.add_api_route(
        "/v1/translate",
        gateway.translate,
        methods=["POST"],
        route_class_override=_Direct,
        tags=["translation"],
        response_model=Translation | Translations,
        responses={
            200: {"content": {EVENTS: {"schema": {"type": "string"}}}},
            **problems.responses(*_ERRORS, *_TRANSLATION_ERRORS),
        },
        openapi_extra={"parameters": TranslateParams.parameters(), **_packet_body(required=False)},
    )
    app.router.add_api_route(
        "/v1/features",
        gateway.keep_features,
        methods=["POST"],
        route_class_override=_Direct,
        tags=["translation"],
        status_code=201,
        response_model=KeptFeatures,
        responses=problems.responses(*_ERRORS),
        openapi_extra=_packet_body(required=True),
    )
    app.delete(
        "/v1/features/{features}",
        tags=["translation"],
        status_code=204,
        responses=problems.responses(Unauthorized, Forbidden, UnknownFeatures, NotReady),
    )(gateway.delete_features)
    app.get("/v1/models", tags=["translation"])(gateway.models)
    app.get("/healthz", tags=["state"])(gateway.healthz)
    app.get("/readyz", tags=["state"], responses=problems.responses(NotReady))(gateway.readyz)
    app.get("/metrics", tags=["state"], response_class=PlainTextResponse)(gateway.metrics)
    app.add_api_websocket_route(
        websocket.PATH, websocket.Streams(gateway, settings, keys, recorder).serve
    )
    _describe_problems(app)
    return app


def _traces(settings: Settings) -> "Traces | None":
    if settings.otlp_endpoint is None:
        return None
    # Imported only where traces are wanted: it takes a third of a second.
    from cloud_vllm.telemetry.tracing import Traces

    return Traces(str(settings.otlp_endpoint))


def _packet_body(*, required: bool) -> dict[str, Any]:
    packet = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
    description = "One feature packet, docs/wire-format.md."
    if not required:
        description += " None where `features` names one."
    return {"requestBody": {"required": required, "description": description, "content": packet}}


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
