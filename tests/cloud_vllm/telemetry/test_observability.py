"""Request ids, log lines and metrics of a request, without its contents."""

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from cloud_vllm.api.app import create_app
from cloud_vllm.auth import keys
from cloud_vllm.engines import EngineState, GenerationChunk
from cloud_vllm.settings import Settings
from cloud_vllm.telemetry import logs
from tests.cloud_vllm.helpers import EVENTS, PACKET, URL, Packets, ScriptedEngine, call

LABELS = ("route", "status", "problem", "stage")
HELLO = GenerationChunk("hello", 1)
END = GenerationChunk("<|eng|><|deu|>hallo", 3, "stop")


@pytest.fixture
def engine() -> ScriptedEngine:
    engine = ScriptedEngine(HELLO, END)
    engine.state = EngineState.READY
    engine.started.set()
    return engine


@pytest.fixture
def gateway(settings: Settings, engine: ScriptedEngine) -> Iterator[TestClient]:
    with TestClient(create_app(settings, engine), raise_server_exceptions=False) as client:
        yield client


def figures(client: TestClient, **headers: str) -> dict[str, float]:
    """The samples of ``/metrics``, by ``name|label|...``."""
    page = client.get("/metrics", headers=headers)
    assert page.headers["content-type"].startswith("text/plain")
    return {
        sample.name
        + "".join(
            f"|{sample.labels[name]}" for name in LABELS if name in sample.labels
        ): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


def lines(log: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """The log lines of the requests, as written to the log."""
    return [
        json.loads(logs.JsonFormatter().format(record))
        for record in log.records
        if record.name == "cloud_vllm.requests"
    ]


@pytest.mark.parametrize("request_id", ["a", "0-9_A.z", "x" * 64])
def test_a_well_formed_request_id_is_kept(gateway: TestClient, request_id: str) -> None:
    answer = gateway.get("/healthz", headers={"X-Request-Id": request_id})
    assert answer.headers["x-request-id"] == request_id


@pytest.mark.parametrize("sent", ["", "a b", 'a"}', "x" * 65, "ü".encode().decode("latin-1")])
def test_a_malformed_request_id_is_replaced(gateway: TestClient, sent: str) -> None:
    headers = {b"X-Request-Id": sent.encode("latin-1")}
    answered = {
        gateway.get(path, headers=headers).headers["x-request-id"] for path in ("/healthz", "/none")
    }
    assert sent not in answered
    assert len(answered) == 2
    assert all(len(request_id) == 32 for request_id in answered)


@pytest.mark.parametrize("headers", [PACKET, EVENTS])
def test_a_request_is_one_line_without_contents(
    gateway: TestClient, packet: Packets, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
) -> None:
    caplog.set_level(logging.INFO)
    body = packet(0, 7)
    gateway.post(URL, content=body, headers=headers | {"X-Request-Id": "mine"})
    (line,) = lines(caplog)
    expected = {
        "level": "info",
        "message": "request",
        "request_id": "mine",
        "method": "POST",
        "route": "/v1/translate",
        "status": 200,
        "problem": "",
        "key": None,
        "bytes_in": len(body),
        "feature_tokens": 7,
        "generated_tokens": 4,
    }
    assert expected.items() <= line.items()
    assert set(line) - set(expected) == {"time", "logger", "ms"}
    assert "hallo" not in caplog.text
    assert "hello" not in caplog.text


def test_probes_are_logged_at_the_level_debug(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    loading = ScriptedEngine()
    with TestClient(create_app(settings, loading)) as client:
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
    assert {line["level"] for line in lines(caplog)} == {"debug"}


def test_errors_are_logged(
    gateway: TestClient,
    engine: ScriptedEngine,
    packet: Packets,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    gateway.get("/v1/secret?word=hush")
    gateway.request("BREW", "/v1/models")
    gateway.post(URL, content=b"hush", headers=PACKET)
    engine.script = (HELLO, ValueError("cause"))
    gateway.post(URL, content=packet(), headers=PACKET)
    gateway.post(URL, content=packet(), headers=EVENTS)
    logged = [(line["method"], line["status"], line["problem"]) for line in lines(caplog)]
    assert logged == [
        ("GET", 404, "not-found"),
        ("other", 405, "method-not-allowed"),
        ("POST", 400, "packet-malformed"),
        ("POST", 500, "internal"),
        ("POST", 200, "internal"),
    ]
    text = "".join(json.dumps(line) for line in lines(caplog))
    assert "hush" not in text
    assert "secret" not in text


def test_the_traceback_of_an_unexpected_error_has_the_request_id(
    gateway: TestClient,
    engine: ScriptedEngine,
    packet: Packets,
) -> None:
    engine.script = (ValueError("cause"),)
    formatter, errors = logs.JsonFormatter(), []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(json.loads(formatter.format(record)))

    handler = Keep(logging.ERROR)
    logging.getLogger("cloud_vllm").addHandler(handler)
    try:
        response = gateway.post(URL, content=packet(), headers=PACKET)
    finally:
        logging.getLogger("cloud_vllm").removeHandler(handler)
    (line,) = errors
    assert line["request_id"] == response.headers["x-request-id"]
    assert "ValueError: cause" in line["traceback"]


def test_no_key_is_logged(
    settings: Settings, engine: ScriptedEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "keys.json"
    key = keys.create(file, "a", keys.Scope.TRANSLATE)
    monitor = keys.create(file, "prometheus", keys.Scope.METRICS)
    app = create_app(settings.model_copy(update={"key_file": file}), engine)
    with TestClient(app) as client:
        client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
        client.get(f"/v1/models?key={key}", headers={"Authorization": f"Bearer {key}x"})
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == 403
        assert figures(client, Authorization=f"Bearer {monitor}")
    secret = key.split("_", 2)[2]
    assert not [
        record
        for record in caplog.records
        if not record.name.startswith("httpx") and secret in logs.JsonFormatter().format(record)
    ]
    assert [line["key"] for line in lines(caplog)][:2] == [key.split("_")[1], None]


def test_counters_and_histograms(
    gateway: TestClient, packet: Packets, engine: ScriptedEngine
) -> None:
    bodies = [packet(0, 7), packet(1, 9)]
    for body in bodies:
        gateway.post(URL, content=body, headers=PACKET)
    gateway.post(URL, content=bodies[0], headers=EVENTS)
    gateway.post(URL, content=b"x", headers=PACKET)
    engine.script = (HELLO,)
    gateway.post(URL, content=bodies[0], headers=EVENTS)
    samples = figures(gateway)
    assert samples["esrt_requests_total|/v1/translate|200|"] == 3
    assert samples["esrt_requests_total|/v1/translate|400|packet-malformed"] == 1
    assert samples["esrt_requests_total|/v1/translate|200|engine-failed"] == 1
    assert samples["esrt_received_bytes_total"] == len(bodies[0]) * 3 + len(bodies[1]) + 1
    assert samples["esrt_feature_tokens_total"] == 7 + 9 + 7 + 7
    assert samples["esrt_generated_tokens_total"] == 4 * 3 + 1
    for stage, count in {
        "upload": 5,
        "decode": 4,
        "first_token": 4,
        "generate": 3,
        "total": 5,
    }.items():
        assert samples[f"esrt_stage_seconds_count|{stage}"] == count, stage
    assert samples["esrt_answers_running"] == samples["esrt_answers_waiting"] == 0
    assert samples["process_resident_memory_bytes"] > 0


@pytest.mark.parametrize("headers", [PACKET, EVENTS])
@pytest.mark.parametrize(("script", "running", "waiting"), [((None,), 0, 1), ((HELLO, None), 1, 0)])
def test_answers_in_progress(
    settings: Settings,
    packet: Packets,
    engine: ScriptedEngine,
    headers: dict[str, str],
    script: tuple[GenerationChunk | None, ...],
    running: int,
    waiting: int,
) -> None:
    app = create_app(settings, engine)
    engine.script = script

    async def scenario() -> None:
        gone = asyncio.Event()
        first = asyncio.create_task(call(app, [packet()], headers=headers, hang_up=gone))
        await engine.generating.wait()
        await asyncio.sleep(0.05)
        samples = await asyncio.to_thread(figures, client)
        assert (samples["esrt_answers_running"], samples["esrt_answers_waiting"]) == (
            running,
            waiting,
        )
        gone.set()
        await first

    client = TestClient(app)
    asyncio.run(scenario())
    samples = figures(client)
    assert (samples["esrt_answers_running"], samples["esrt_answers_waiting"]) == (0, 0)
    gone = [name for name in samples if "total" in name and "client-gone" in name]
    assert gone == [
        f"esrt_requests_total|/v1/translate|{499 if headers is PACKET else 200}|client-gone"
    ]
