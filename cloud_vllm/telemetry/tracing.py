"""Traces: one span per request and one per stage, sent to the configured collector.

Spans have the same fields as the lines of the log: counts and times, no contents. A span is
written after its request has ended, so that tracing does not delay the request.
"""

import time
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cloud_vllm.request_context import RequestContext

SERVICE = "esrt-gateway"
# Stages that are measured from the arrival of the packet; the others follow one another.
_FROM_ARRIVAL = frozenset({"first_token", "generate"})


class Traces:
    """Exporter of spans: OTLP over HTTP, in batches, from a separate thread.

    The environment variables of the OpenTelemetry SDK apply too: OTEL_SERVICE_NAME,
    OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS.

    Args:
        endpoint: address of the collector, ``http://host:4318/v1/traces``.
    """

    def __init__(self, endpoint: str) -> None:
        resource = Resource({"service.name": SERVICE}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("cloud_vllm")
        self._parent = TraceContextTextMapPropagator()

    def record(
        self,
        headers: Mapping[str, str],
        context: RequestContext,
        fields: dict[str, Any],
        seconds: float,
    ) -> None:
        """Write the spans of a request that has just ended.

        Args:
            headers: request headers; a W3C ``traceparent`` makes the span part of that trace.
            context: counts and stage durations of the request.
            fields: fields of the request's line in the log.
            seconds: duration of the request.
        """
        end = time.time_ns()
        begin = end - round(seconds * 1e9)
        span = self._tracer.start_span(
            f"{fields['method']} {fields['route']}".strip(),
            context=self._parent.extract(headers),
            kind=SpanKind.SERVER,
            start_time=begin,
            attributes=_attributes(fields),
        )
        if fields["status"] >= 500 or (fields["status"] < 400 and context.problem):
            span.set_status(Status(StatusCode.ERROR))
        inside = trace.set_span_in_context(span)
        last = arrived = begin
        for stage, ms in context.stages_ms:
            # Only durations are known, not start times. The gaps between stages, well under a
            # millisecond, are therefore shown after the last stage.
            since = arrived if stage in _FROM_ARRIVAL else last
            until = min(since + round(ms * 1e6), end)
            if stage not in _FROM_ARRIVAL:
                last = until
            if stage == "upload":
                arrived = until
            self._tracer.start_span(stage, context=inside, start_time=since).end(until)
        span.end(end)

    def close(self) -> None:
        """Send the remaining spans; wait at most ten seconds for the collector."""
        self._provider.shutdown()


def _attributes(fields: dict[str, Any]) -> dict[str, str | int]:
    """Return the span attributes, under OpenTelemetry's standard names where there are some."""
    attributes: dict[str, str | int] = {
        "http.request.method": fields["method"],
        "http.route": fields["route"],
        "http.response.status_code": fields["status"],
        **{
            f"esrt.{name}": fields[name]
            for name in ("request_id", "bytes_in", "feature_tokens", "generated_tokens")
        },
    }
    if fields["problem"]:
        attributes["error.type"] = fields["problem"]
    if fields["key"]:
        attributes["esrt.key"] = fields["key"]
    return attributes
