"""Record of a finished request in metrics, log and traces."""

from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import Scope

from cloud_vllm.request_context import RequestContext
from cloud_vllm.telemetry import logs
from cloud_vllm.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from cloud_vllm.telemetry.tracing import Traces

METRICS_PATH = "/metrics"

_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})
_READINESS_PATH = "/readyz"
_ROUTINE = frozenset({"/healthz", _READINESS_PATH, METRICS_PATH})


class RequestRecorder:
    """Writes finished requests to the metrics, the log and, unless ``traces`` is None, a trace."""

    def __init__(self, metrics: Metrics, traces: "Traces | None") -> None:
        self._metrics = metrics
        self._traces = traces

    def record(self, scope: Scope, context: RequestContext, status: int, seconds: float) -> None:
        """Record a request, or a segment of a stream.

        Args:
            scope: ASGI scope of the connection.
            context: counts and stage durations of the request.
            status: HTTP status of the answer.
            seconds: duration of the request.
        """
        # The pattern of the route, not the path: a path can contain a handle or arbitrary text.
        route = getattr(scope.get("route"), "path", "")
        self._metrics.count(context, route, status, seconds)
        fields = {
            "request_id": context.id,
            "method": method if (method := scope.get("method", "GET")) in _METHODS else "other",
            "route": route,
            "status": status,
            "problem": context.problem,
            "key": context.owner,
            "bytes_in": context.bytes_in,
            "feature_tokens": context.feature_tokens,
            "generated_tokens": context.generated_tokens,
            "ms": round(seconds * 1e3, 3),
        }
        # A readiness probe fails while the engine loads.
        routine = route in _ROUTINE and (status < 400 or route == _READINESS_PATH)
        logs.request(fields, routine=routine)
        if self._traces and not routine:
            self._traces.record(Headers(scope=scope), context, fields, seconds)
