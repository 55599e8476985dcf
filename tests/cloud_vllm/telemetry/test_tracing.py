"""Traces as a collector receives them; without a collector, no traces."""

import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from pydantic import ValidationError
from starlette.testclient import TestClient

from cloud_vllm.api.app import create_app
from cloud_vllm.auth import keys
from cloud_vllm.engines import EngineState, GenerationChunk
from cloud_vllm.settings import Settings
from esrt.errors import EngineFailed
from tests.cloud_vllm.helpers import EVENTS, PACKET, URL, Packets, ScriptedEngine

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
END = GenerationChunk("hello<|eng|><|deu|>hallo", 4, "stop")


class Collector:
    """An OTLP receiver on loopback."""

    def __init__(self) -> None:
        received = self.requests = list[ExportTraceServiceRequest]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append(ExportTraceServiceRequest.FromString(body))
                assert self.path == "/v1/traces"
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()
    thread.join()


@pytest.fixture
def engine() -> ScriptedEngine:
    engine = ScriptedEngine(GenerationChunk("", 1), END)
    engine.state = EngineState.READY
    engine.started.set()
    return engine


Traced = Callable[..., list[Span]]


@pytest.fixture
def traced(settings: Settings, engine: ScriptedEngine, collector: Collector) -> Traced:
    """Send one request and return its spans, ``count`` of them."""

    def run(count: int, method: str, url: str, app_settings: Settings = settings, **call) -> list:  # type: ignore[no-untyped-def,type-arg]
        traced_settings = app_settings.model_copy(update={"otlp_endpoint": collector.endpoint})
        with TestClient(
            create_app(traced_settings, engine), raise_server_exceptions=False
        ) as client:
            client.request(method, url, **call)
        # The app sends the remaining spans before it ends.
        assert len(collector.spans()) == count
        return collector.spans()

    return run


def attributes(span: Span) -> dict[str, object]:
    return {item.key: item.value.string_value or item.value.int_value for item in span.attributes}


@pytest.mark.parametrize("headers", [PACKET, EVENTS])
def test_a_request_is_a_span_with_its_stages(
    traced: Traced, collector: Collector, packet: Packets, headers: dict[str, str]
) -> None:
    body = packet(0, 7)
    spans = traced(6, "POST", URL, content=body, headers=headers | {"X-Request-Id": "mine"})
    (root,) = [span for span in spans if not span.parent_span_id]
    assert root.name == "POST /v1/translate"
    assert root.kind == Span.SPAN_KIND_SERVER
    assert root.status.code == Status.STATUS_CODE_UNSET
    assert attributes(root) == {
        "http.request.method": "POST",
        "http.route": "/v1/translate",
        "http.response.status_code": 200,
        "esrt.request_id": "mine",
        "esrt.bytes_in": len(body),
        "esrt.feature_tokens": 7,
        "esrt.generated_tokens": 5,
    }
    stages = {span.name: span for span in spans if span is not root}
    assert set(stages) == {"upload", "decode", "project", "first_token", "generate"}
    for span in stages.values():
        assert span.trace_id == root.trace_id
        assert span.parent_span_id == root.span_id
        assert root.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano
    arrival = stages["upload"].end_time_unix_nano
    assert stages["decode"].start_time_unix_nano == arrival
    assert stages["project"].start_time_unix_nano == stages["decode"].end_time_unix_nano
    assert stages["generate"].start_time_unix_nano == arrival
    (resource,) = {
        item.value.string_value
        for request in collector.requests
        for item in request.resource_spans[0].resource.attributes
        if item.key == "service.name"
    }
    assert resource == "esrt-gateway"
    sent = b"".join(request.SerializeToString() for request in collector.requests)
    assert b"hello" not in sent
    assert b"hallo" not in sent


def test_a_request_continues_the_trace_of_the_caller(traced: Traced) -> None:
    (span,) = traced(1, "GET", "/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)


@pytest.mark.parametrize("header", ["", "00-zz-zz-01", f"00-{'0' * 32}-{PARENT}-01", "x" * 4096])
def test_a_malformed_parent_is_ignored(traced: Traced, header: str) -> None:
    (span,) = traced(1, "GET", "/v1/models", headers={"traceparent": header})
    assert not span.parent_span_id
    assert span.trace_id.hex() != "0" * 32


def test_a_failed_request_has_the_error_type(
    traced: Traced, engine: ScriptedEngine, packet: Packets, settings: Settings
) -> None:
    engine.script = (EngineFailed("It died.", "Wait."),)
    spans = traced(4, "POST", URL, content=packet(), headers=EVENTS)
    (root,) = [span for span in spans if not span.parent_span_id]
    assert root.status.code == Status.STATUS_CODE_ERROR
    assert attributes(root)["error.type"] == "engine-failed"


def test_a_span_has_the_key_id_without_the_secret(
    traced: Traced, settings: Settings, tmp_path: Path, collector: Collector
) -> None:
    file = tmp_path / "keys.json"
    key = keys.create(file, "a", keys.Scope.TRANSLATE)
    guarded = settings.model_copy(update={"key_file": file})
    headers = {"Authorization": f"Bearer {key}"}
    (span,) = traced(1, "GET", "/v1/models", guarded, headers=headers)
    key_id, secret = key.split("_", 2)[1:]
    assert attributes(span)["esrt.key"] == key_id
    assert secret.encode() not in collector.requests[0].SerializeToString()


def test_probes_are_not_traced(traced: Traced, collector: Collector) -> None:
    spans = traced(1, "GET", "/v1/none")
    assert [span.name for span in spans] == ["GET"]
    collector.requests.clear()
    assert traced(0, "GET", "/healthz") == []


def test_requests_succeed_without_a_reachable_collector(
    settings: Settings, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1")
    traced_settings = settings.model_copy(update={"otlp_endpoint": "http://127.0.0.1:9/v1/traces"})
    with TestClient(create_app(traced_settings, engine)) as client:
        assert all(client.get("/v1/models").status_code == 200 for _ in range(20))


def test_tracing_is_not_loaded_without_an_endpoint(settings: Settings) -> None:
    for name in [name for name in sys.modules if name == "cloud_vllm.telemetry.tracing"]:
        del sys.modules[name]
    create_app(settings, ScriptedEngine())
    assert "cloud_vllm.telemetry.tracing" not in sys.modules


def test_an_endpoint_is_a_url() -> None:
    with pytest.raises(ValidationError):
        Settings(otlp_endpoint="collector:4318")


def test_every_segment_of_a_stream_is_a_span(
    settings: Settings, engine: ScriptedEngine, collector: Collector, packet: Packets
) -> None:
    traced_settings = settings.model_copy(update={"otlp_endpoint": collector.endpoint})
    path, headers = "/v1/stream?src=eng&tgt=deu", {"X-Request-Id": "talk"}
    with (
        TestClient(create_app(traced_settings, engine)) as client,
        client.websocket_connect(path, headers=headers) as session,
    ):
        for tokens in (5, 6):
            session.send_bytes(packet(0, tokens))
        session.send_text("end")
        done = 0
        while done < 2:
            done += '"done"' in session.receive_text()
    roots = [span for span in collector.spans() if not span.parent_span_id]
    assert {span.name for span in roots} == {"GET /v1/stream"}
    by_id = {attributes(span)["esrt.request_id"]: attributes(span) for span in roots}
    assert set(by_id) == {"talk", "talk-0", "talk-1"}
    assert [by_id[f"talk-{part}"]["esrt.feature_tokens"] for part in (0, 1)] == [5, 6]
    stages = {span.name for span in collector.spans() if span.parent_span_id}
    assert stages == {"decode", "project", "first_token", "generate"}
