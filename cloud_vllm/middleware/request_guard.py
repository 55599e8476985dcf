"""The outermost middleware: time limit, security headers, clean-up and record of a request."""

import asyncio
import logging
import time

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud_vllm import problems
from cloud_vllm.request_context import RequestContext, attach
from cloud_vllm.settings import Settings
from cloud_vllm.telemetry import logs
from cloud_vllm.telemetry.request_recorder import RequestRecorder
from esrt.errors import DeadlineExceeded

# Messages that hold the status and headers of an answer. A websocket is accepted, or rejected with
# an ordinary answer.
_STARTS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
_SWITCHED = 101

_log = logging.getLogger(__name__)

_HEADERS = [
    # Answers are data: a browser must not guess their type, or run, frame or store them.
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
_HSTS = (b"strict-transport-security", b"max-age=31536000")
# Time to send the answer, in addition to the limits of upload and decoding.
_SEND_S = 30.0


class RequestGuard:
    """Limits the time of each request, adds headers, runs its clean-up and records it."""

    def __init__(self, app: ASGIApp, settings: Settings, recorder: RequestRecorder) -> None:
        self._app = app
        self._recorder = recorder
        self._seconds = settings.upload_s + settings.deadline_s + _SEND_S
        self._headers = [*_HEADERS, _HSTS] if settings.tls_certificate else _HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] not in ("http", "websocket"):
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
                    present = {name for name, _ in headers}
                    headers += [header for header in self._headers if header[0] not in present]
                message["headers"] = headers
            await send(message)

        attach(scope, context)
        token = logs.REQUEST_ID.set(context.id)
        try:
            with context.cleanup:
                # A stream of segments has its own limits: on silence, and on each segment.
                seconds = self._seconds if scope["type"] == "http" else None
                async with asyncio.timeout(seconds):
                    await self._app(scope, receive, send_guarded)
        except Exception as error:
            if not isinstance(error, TimeoutError):
                _log.exception("A request ended with an unexpected error.")
            late = DeadlineExceeded("The request took too long.", "Send the request again.")
            problem = problems.from_error(late if isinstance(error, TimeoutError) else error)
            context.problem = problems.short_type(problem)
            if status:
                # A part of the answer is sent; only a broken connection shows the client the error.
                raise
            response = problems.problem_response(HTTPConnection(scope), problem)
            await response(scope, receive, send_guarded)
        finally:
            self._recorder.record(scope, context, status, time.perf_counter() - begin)
            logs.REQUEST_ID.reset(token)
