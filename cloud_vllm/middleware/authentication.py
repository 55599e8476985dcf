"""Authentication by API key."""

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from cloud_vllm import problems
from cloud_vllm.auth.keys import KeyRing
from cloud_vllm.auth.keys import Scope as KeyScope
from cloud_vllm.request_context import request_context_of
from cloud_vllm.telemetry.request_recorder import METRICS_PATH
from esrt.errors import EsrtError, Forbidden, Unauthorized

# Probes of a load balancer, and the document from which a client learns the API.
PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json"})


class Authentication:
    """Rejects requests without a valid API key; public paths need none.

    Args:
        app: the application behind this middleware.
        keys: the valid keys; ``None`` accepts every request.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        is_request = scope["type"] in ("http", "websocket")
        if is_request and self._keys and scope["path"] not in PUBLIC_PATHS:
            request = HTTPConnection(scope)
            try:
                _authenticate(self._keys, request)
            except EsrtError as error:
                await problems.error_response(request, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _authenticate(keys: KeyRing, request: HTTPConnection) -> None:
    entry = keys.find(_bearer_token(request.headers))
    if entry is None:
        raise Unauthorized(
            "The API key is missing or not valid.",
            "Send 'Authorization: Bearer KEY'; edge_runtime takes the key from ESRT_API_KEY.",
        )
    is_metrics = request.scope["path"] == METRICS_PATH
    needed = KeyScope.METRICS if is_metrics else KeyScope.TRANSLATE
    request_context_of(request).key = entry
    if entry.scope is not needed:
        raise Forbidden(
            f"This key has the scope {entry.scope}; this path needs the scope {needed}.",
            "Use a key of that scope.",
        )


def _bearer_token(headers: Headers) -> str:
    """The bearer token of a request; empty if there is none, or more than one."""
    values = headers.getlist("authorization")
    scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" else ""
