"""The HTTP service: feature packets in, transcript and translation out."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse

from cloud_vllm import problems
from cloud_vllm.api import sse, websocket
from cloud_vllm.api.handlers import Handlers
from cloud_vllm.auth.keys import KeyRing
from cloud_vllm.engines import Engine, Supervisor, create_engine
from cloud_vllm.middleware.authentication import PUBLIC_PATHS, Authentication
from cloud_vllm.middleware.request_guard import RequestGuard
from cloud_vllm.schemas import KeptFeatures, Problem, Translation, Translations
from cloud_vllm.service.gateway import GatewayService
from cloud_vllm.settings import Settings
from cloud_vllm.telemetry.request_recorder import RequestRecorder
from esrt.checkpoint import Checkpoint, open_checkpoint
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


def create_app(
    settings: Settings,
    engine: Engine | None = None,
    clock: Callable[[], float] = time.monotonic,
    on_ready: Callable[[Checkpoint], None] = lambda _: None,
) -> FastAPI:
    """Create the gateway for one checkpoint.

    The engine loads in the background once the app runs; ``/healthz`` answers in the meantime.
    ``app.state.engine`` is the engine.

    Args:
        settings: the gateway's settings.
        engine: the decoder; by default the engine that the settings name, under supervision.
        clock: monotonic clock in seconds, for rate limits and expiry.
        on_ready: called once the engine has loaded.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        RequestError: the key file is missing or damaged.
    """
    keys = KeyRing(settings.key_file) if settings.key_file else None
    checkpoint = open_checkpoint(settings.checkpoint)
    if engine is None:
        engine = Supervisor(lambda: create_engine(checkpoint, settings), checkpoint, settings)
    service = GatewayService(checkpoint, settings, engine, clock, on_ready)
    handlers = Handlers(service, settings, clock)
    traces = _traces(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.lifespan(), handlers.lifespan():
            yield
        if traces:
            await asyncio.to_thread(traces.close)

    app = FastAPI(
        title="ESRT gateway",
        version="1",
        summary="Speech features in, transcript and translation out.",
        lifespan=lifespan,
        # A redirect would name the scheme and host that a proxy uses to reach the gateway.
        redirect_slashes=False,
        # The interactive pages would load third-party scripts into this origin.
        docs_url=None,
        redoc_url=None,
    )
    app.state.engine = engine
    app.add_middleware(Authentication, keys=keys)
    if settings.cors_origins:
        # Outside the authentication, because a browser's preflight request carries no key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "X-Request-Id"],
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    recorder = RequestRecorder(service.metrics, traces)
    app.add_middleware(RequestGuard, settings=settings, recorder=recorder)
    problems.install_handlers(app)
    app.post(
        "/v1/translate",
        tags=["translation"],
        response_model=Translation | Translations,
        responses={
            200: {"content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}}}},
            **problems.responses(*_ERRORS, *_TRANSLATION_ERRORS),
        },
        openapi_extra=_packet_body(required=False),
    )(handlers.translate)
    app.post(
        "/v1/features",
        tags=["translation"],
        status_code=201,
        response_model=KeptFeatures,
        responses=problems.responses(*_ERRORS),
        openapi_extra=_packet_body(required=True),
    )(handlers.keep_features)
    app.delete(
        "/v1/features/{features}",
        tags=["translation"],
        status_code=204,
        responses=problems.responses(Unauthorized, Forbidden, UnknownFeatures, NotReady),
    )(handlers.delete_features)
    app.get("/v1/models", tags=["translation"])(handlers.models)
    app.get("/healthz", tags=["state"])(handlers.healthz)
    app.get("/readyz", tags=["state"], responses=problems.responses(NotReady))(handlers.readyz)
    app.get("/metrics", tags=["state"], response_class=PlainTextResponse)(handlers.metrics)
    for path, handler in (
        ("/v1/models", handlers.models),
        ("/healthz", handlers.healthz),
        ("/readyz", handlers.readyz),
        ("/metrics", handlers.metrics),
    ):
        app.head(path, include_in_schema=False)(handler)
    app.add_api_websocket_route(
        websocket.PATH, websocket.Streams(service, settings, keys, recorder).serve
    )
    _complete_description(app)
    return app


def _traces(settings: Settings) -> "Traces | None":
    if settings.otlp_endpoint is None:
        return None
    # Imported on demand: the import takes a third of a second.
    from cloud_vllm.telemetry.tracing import Traces

    return Traces(str(settings.otlp_endpoint))


def _packet_body(*, required: bool) -> dict[str, Any]:
    packet = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
    description = "One feature packet, docs/wire-format.md."
    if not required:
        description += " No body if the parameter `features` names a stored packet."
    return {"requestBody": {"required": required, "description": description, "content": packet}}


def _complete_description(app: FastAPI) -> None:
    """Add problems and API keys to the OpenAPI document; remove FastAPI's validation errors."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            components = document.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            schemas["Problem"] = Problem.model_json_schema()
            components["securitySchemes"] = {
                "ApiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key. A gateway without a key file needs none.",
                }
            }
            document["security"] = [{"ApiKey": []}, {}]
            for path in PUBLIC_PATHS & document["paths"].keys():
                document["paths"][path]["get"]["security"] = []
        schema: dict[str, Any] = generate()
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
