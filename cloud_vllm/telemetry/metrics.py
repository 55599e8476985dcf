"""The figures that ``/metrics`` shows, in Prometheus' format."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cloud_vllm.request_context import RequestContext

CONTENT_TYPE = CONTENT_TYPE_LATEST

# From the decoding of a packet, well under a millisecond, to the longest answer.
_SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class Metrics:
    """Counters and histograms of one gateway; each has its own, so that tests do not add up."""

    def __init__(self, admitted_answers: Callable[[], int]) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        requests = Counter(
            "esrt_requests",
            "Requests that have ended, by their problem's type where they had one.",
            ("route", "status", "problem"),
            registry=registry,
        )
        self._request = cache(requests.labels)
        stages = Histogram(
            "esrt_stage_seconds",
            "Time that requests took: upload, decode, project, first_token and generate"
            " (both from the packet's arrival), total.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._stage = cache(stages.labels)
        self._bytes = Counter("esrt_received_bytes", "Bytes of packets.", registry=registry)
        self._features = Counter(
            "esrt_feature_tokens",
            "Feature tokens in packets that were admitted.",
            registry=registry,
        )
        self._generated = Counter(
            "esrt_generated_tokens", "Tokens that the engine wrote.", registry=registry
        )
        self._retries = Counter(
            "esrt_retried_answers",
            "Times that an answer was decoded anew because its engine had died.",
            registry=registry,
        )
        self._running = 0
        self.gauge("esrt_answers_running", "Answers that have their first token.").set_function(
            lambda: self._running
        )
        self.gauge(
            "esrt_answers_waiting",
            "Answers taken on that have no token yet: uploading, queued or in prefill.",
        ).set_function(lambda: admitted_answers() - self._running)

    @contextmanager
    def running(self) -> Iterator[None]:
        """While an answer that has its first token is decoded."""
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def retried(self) -> None:
        """Count an answer that is decoded anew."""
        self._retries.inc()

    def gauge(self, name: str, description: str) -> Gauge:
        """Another gauge, for a part of the gateway to set."""
        return Gauge(name, description, registry=self._registry)

    def count(self, context: RequestContext, route: str, status: int, seconds: float) -> None:
        """Add a request that has ended."""
        self._request(route, str(status), context.problem).inc()
        self._bytes.inc(context.bytes_in)
        self._features.inc(context.feature_tokens)
        self._generated.inc(context.generated_tokens)
        for stage, ms in context.stages_ms:
            self._stage(stage).observe(ms / 1e3)
        if context.stages_ms:
            self._stage("total").observe(seconds)

    def render(self) -> bytes:
        """The text that Prometheus reads: the gateway's figures, and the engine's own."""
        return generate_latest(self._registry) + generate_latest(_ENGINE)


class _EngineCollector(Collector):
    """What vLLM keeps in the process's common registry; nothing else that may be there."""

    def collect(self) -> Iterator[Metric]:
        """The families whose names are vLLM's."""
        return (family for family in REGISTRY.collect() if family.name.startswith("vllm:"))


_ENGINE = CollectorRegistry(auto_describe=False)
_ENGINE.register(_EngineCollector())
