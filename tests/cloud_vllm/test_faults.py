"""Answers while the engine loads, fails, hangs or dies; disconnects abort the decoding."""

import asyncio
import json

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from cloud_vllm.api.app import create_app
from cloud_vllm.engines import EngineState, GenerationChunk
from cloud_vllm.settings import Settings
from esrt.checkpoint import Checkpoint
from esrt.errors import CheckpointError, EngineFailed
from tests.cloud_vllm.helpers import (
    EVENTS,
    PACKET,
    URL,
    Packets,
    ScriptedEngine,
    assert_problem,
    assert_stream_adds_up,
    call,
    parse_events,
    wait_until_ready,
)

HELLO = GenerationChunk("hello", 1)
END = GenerationChunk("<|eng|><|deu|>hallo", 3, "stop")


def _ready(settings: Settings, engine: ScriptedEngine, **changes: float) -> FastAPI:
    engine.state = EngineState.READY
    engine.started.set()
    return create_app(settings.model_copy(update=changes), engine)


def test_alive_but_not_ready_while_loading(settings: Settings, packet: Packets) -> None:
    engine, ready = ScriptedEngine(END), list[Checkpoint]()
    with TestClient(create_app(settings, engine, on_ready=ready.append)) as client:
        assert client.get("/healthz").status_code == 200
        assert ready == []
        assert client.get("/v1/models").status_code == 200
        response = client.get("/readyz")
        assert_problem(response, 503, "not-ready", "loading")
        assert response.headers["retry-after"] == "5"
        assert_problem(client.post(URL, content=packet(), headers=PACKET), 503, "not-ready")
        assert client.portal is not None
        client.portal.call(engine.started.set)
        wait_until_ready(client)
        assert client.post(URL, content=packet(), headers=PACKET).status_code == 200
        assert [checkpoint.folder for checkpoint in ready] == [settings.checkpoint]
    assert engine.state is EngineState.CLOSED


@pytest.mark.parametrize(
    "error", [CheckpointError("No secret/decoder.", "Use another."), ZeroDivisionError("secret")]
)
def test_an_engine_that_cannot_load(
    settings: Settings, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine()
    engine.error = error
    engine.started.set()
    with TestClient(create_app(settings, engine)) as client:
        for _ in range(100):
            response = client.get("/readyz")
            if "loading" not in response.text:
                break
        assert_problem(response, 503, "not-ready", "failed to start")
        assert "secret" not in response.text
        assert "secret" in caplog.text
        assert client.get("/healthz").status_code == 200


def test_an_engine_that_has_died(settings: Settings, packet: Packets) -> None:
    engine = ScriptedEngine(END)
    with TestClient(_ready(settings, engine)) as client:
        engine.state = EngineState.FAILED
        assert_problem(client.get("/readyz"), 503, "not-ready", "died")
        assert_problem(client.post(URL, content=packet(), headers=PACKET), 503, "not-ready")


@pytest.mark.parametrize(
    ("script", "status", "kind"),
    [
        ((HELLO, EngineFailed("The engine died.", "Wait.")), 503, "engine-failed"),
        ((HELLO,), 503, "engine-failed"),
        ((HELLO, ValueError("secret")), 500, "internal"),
        ((HELLO, None), 504, "deadline-exceeded"),
        ((None,), 504, "deadline-exceeded"),
    ],
)
def test_an_engine_that_fails_while_decoding(
    settings: Settings,
    packet: Packets,
    script: tuple[GenerationChunk | Exception | None, ...],
    status: int,
    kind: str,
) -> None:
    engine = ScriptedEngine(*script)
    app = _ready(settings, engine, deadline_s=0.05)
    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.post(URL, content=packet(), headers=PACKET)
        assert_problem(response, status, kind)
        assert "secret" not in response.text
        stream = client.post(URL, content=packet(), headers=EVENTS)
        assert "secret" not in stream.text
        *deltas, (name, problem) = parse_events(stream.text)
        assert deltas == [("transcript", {"text": "hello"})][: len(script) - (script[0] is None)]
        assert (name, problem) == ("error", response.json())
        assert engine.open == 0
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("headers", [PACKET, EVENTS])
@pytest.mark.parametrize("script", [(HELLO, None), (None,)])
def test_a_disconnect_ends_the_decoding(
    settings: Settings,
    packet: Packets,
    headers: dict[str, str],
    script: tuple[GenerationChunk | None, ...],
) -> None:
    async def scenario() -> None:
        engine, gone = ScriptedEngine(*script), asyncio.Event()
        app = _ready(settings, engine)
        request = asyncio.create_task(call(app, [packet()], headers=headers, hang_up=gone))
        await engine.generating.wait()
        assert engine.open == 1
        gone.set()
        await asyncio.wait_for(request, 5)
        assert engine.open == 0

    asyncio.run(scenario())


def test_streams_text_before_the_answer_is_complete(settings: Settings, packet: Packets) -> None:
    async def scenario() -> bytes:
        engine, gone = ScriptedEngine(HELLO, GenerationChunk(" <|en", 1), None), asyncio.Event()
        app = _ready(settings, engine)
        request = asyncio.create_task(call(app, [packet()], headers=EVENTS, hang_up=gone))
        await engine.generating.wait()
        await asyncio.sleep(0.05)
        gone.set()
        return (await request)[1]

    events = parse_events(asyncio.run(scenario()).decode())
    assert "".join(data["text"] for _, data in events) == "hello "


def test_unusual_line_breaks_in_a_text(settings: Settings, packet: Packets) -> None:
    text = "a\u2028b\u2029c\x85d\r\ne\x1cf\x0bg"
    engine = ScriptedEngine(GenerationChunk(text, 1), END)
    with TestClient(_ready(settings, engine)) as client:
        stream = client.post(URL, content=packet(), headers=EVENTS)
        assert assert_stream_adds_up(parse_events(stream.text))["transcript"] == text
        assert all(line.startswith(("event: ", "data: ", "")) for line in stream.text.splitlines())
        assert json.loads(stream.text.splitlines()[1].removeprefix("data: ")) == {"text": text}
