"""Metrics of the gateway, served at ``/metrics`` in the Prometheus format."""

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

# Bucket bounds: decoding a packet takes well under a millisecond, the longest answer a minute.
_SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class Metrics:
    """Counters, gauges and histograms of one gateway, in a registry of their own.

    Several gateways in one process, as in tests, therefore do not share figures.
    """

    def __init__(self, admitted_answers: Callable[[], int]) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        requests = Counter(
            "esrt_requests",
            "Finished requests, by status and by problem type where there was one.",
            ("route", "status", "problem"),
            registry=registry,
        )
        self._request = cache(requests.labels)
        stages = Histogram(
            "esrt_stage_seconds",
            "Duration of the stages of a request: upload, decode, project, first_token and"
            " generate (both since the packet arrived), total.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._stage = cache(stages.labels)
        self._bytes = Counter("esrt_received_bytes", "Received packet bytes.", registry=registry)
        self._features = Counter(
            "esrt_feature_tokens",
            "Feature tokens in admitted packets.",
            registry=registry,
        )
        self._generated = Counter(
            "esrt_generated_tokens", "Tokens that the engine generated.", registry=registry
        )
        self._retries = Counter(
            "esrt_retried_answers",
            "Answers that were decoded again because the engine had died.",
            registry=registry,
        )
        self._running = 0
        self.gauge("esrt_answers_running", "Answers that have their first token.").set_function(
            lambda: self._running
        )
        self.gauge(
            "esrt_answers_waiting",
            "Admitted answers without a token yet: uploading, queued or in prefill.",
        ).set_function(lambda: admitted_answers() - self._running)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count an answer as running, from its first token to the end of the block."""
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def retried(self) -> None:
        """Count an answer that is decoded again."""
        self._retries.inc()

    def gauge(self, name: str, description: str) -> Gauge:
        """Register another gauge, which a part of the gateway sets."""
        return Gauge(name, description, registry=self._registry)

    def count(self, context: RequestContext, route: str, status: int, seconds: float) -> None:
        """Add a finished request."""
        self._request(route, str(status), context.problem).inc()
        self._bytes.inc(context.bytes_in)
        self._features.inc(context.feature_tokens)
        self._generated.inc(context.generated_tokens)
        for stage, ms in context.stages_ms:
            self._stage(stage).observe(ms / 1e3)
        if context.stages_ms:
            self._stage("total").observe(seconds)

    def render(self) -> bytes:
        """Return the metrics of the gateway and of vLLM as Prometheus text."""
        return generate_latest(self._registry) + generate_latest(_ENGINE)


class _EngineCollector(Collector):
    """The metrics of vLLM in the global registry of the process, without any others."""

    def collect(self) -> Iterator[Metric]:
        """Return the metric families whose names begin with ``vllm:``."""
        return (family for family in REGISTRY.collect() if family.name.startswith("vllm:"))


_ENGINE = CollectorRegistry(auto_describe=False)
_ENGINE.register(_EngineCollector())
