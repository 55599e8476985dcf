"""The gateway's outermost layers, which see every request before anything of it is read."""

import asyncio
import logging
import time

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud_vllm import problems
from cloud_vllm.auth.keys import KeyRing
from cloud_vllm.auth.keys import Scope as KeyScope
from cloud_vllm.request_context import RequestContext, attach, request_context_of
from cloud_vllm.settings import Settings
from cloud_vllm.telemetry import logs
from cloud_vllm.telemetry.request_recorder import METRICS_PATH, RequestRecorder
from esrt.errors import DeadlineExceeded, EsrtError, Forbidden, Unauthorized

# What a load balancer asks before it knows anything, and what a client reads to learn the API.
PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json"})

_KINDS = frozenset({"http", "websocket"})
# The messages that hold the head of an answer; a websocket is accepted, or refused as a request is.
_STARTS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
_SWITCHED = 101

_log = logging.getLogger(__name__)

_HEADERS = [
    # The answers are data: a browser shall neither guess a type, nor run, frame or keep them.
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
_HSTS = (b"strict-transport-security", b"max-age=31536000")
# Beyond the time for the upload and for the answer; for a client that does not read its answer.
_SEND_S = 30.0


class RequestGuard:
    """Bounds each request in time, adds headers, gives back what it held, and accounts for it."""

    def __init__(self, app: ASGIApp, settings: Settings, recorder: RequestRecorder) -> None:
        self._app = app
        self._recorder = recorder
        self._seconds = settings.upload_s + settings.deadline_s + _SEND_S
        self._headers = [*_HEADERS, _HSTS] if settings.tls_certificate else _HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] not in _KINDS:
            await self._app(scope, receive, send)
            return
        context = RequestContext(Headers(scope=scope).get("x-request-id", ""))
        status, begin = 0, time.perf_counter()

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] in _STARTS:
                status = message.get("status", _SWITCHED)
                headers = [*message.get("headers", ()), (b"x-request-id", context.id.encode())]
                if status != _SWITCHED:
                    given = {name for name, _ in headers}
                    headers += [(name, value) for name, value in self._headers if name not in given]
                message["headers"] = headers
            await send(message)

        attach(scope, context)
        token = logs.REQUEST_ID.set(context.id)
        try:
            with context.cleanup:
                await self._handle(scope, receive, send_guarded)
        except Exception as error:
            if not isinstance(error, TimeoutError):
                _log.exception("A request ended with an error that was not foreseen.")
            late = DeadlineExceeded("The request took too long.", "Send it again.")
            problem = problems.from_error(late if isinstance(error, TimeoutError) else error)
            context.problem = problems.name(problem)
            if status:
                # Half an answer is out; only a connection that breaks off tells the client so.
                raise
            await problems.respond(HTTPConnection(scope), problem)(scope, receive, send_guarded)
        finally:
            self._recorder.record(scope, context, status, time.perf_counter() - begin)
            logs.REQUEST_ID.reset(token)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A stream has limits of its own: on its silence, and on each segment.
        async with asyncio.timeout(self._seconds if scope["type"] == "http" else None):
            await self._app(scope, receive, send)


class Authentication:
    """Lets in who has a key; every path that is not public needs one.

    Args:
        app: what is guarded.
        keys: the valid keys; ``None`` lets everyone in.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] in _KINDS and self._keys and scope["path"] not in PUBLIC_PATHS:
            request = HTTPConnection(scope)
            try:
                self._identify(self._keys, request)
            except EsrtError as error:
                await problems.answer(request, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _identify(self, keys: KeyRing, request: HTTPConnection) -> None:
        entry = keys.find(_bearer(request.headers))
        if entry is None:
            raise Unauthorized(
                "The API key is missing or not valid.",
                "Send one as 'Authorization: Bearer KEY'; edge_runtime takes it from ESRT_API_KEY.",
            )
        metrics = request.scope["path"] == METRICS_PATH
        needed = KeyScope.METRICS if metrics else KeyScope.TRANSLATE
        request_context_of(request).key = entry
        if entry.scope is not needed:
            raise Forbidden(
                f"This key is for {entry.scope}, not for {needed}.", "Use a key of that scope."
            )


def _bearer(headers: Headers) -> str:
    """The key that a request carries, or nothing; two of them are none."""
    values = headers.getlist("authorization")
    scheme, _, key = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return key.strip() if scheme.lower() == "bearer" else ""
