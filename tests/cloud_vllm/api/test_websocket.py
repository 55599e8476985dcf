"""Streams of segments over a websocket."""

import asyncio
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from cloud_vllm import listener
from cloud_vllm.api import app, websocket
from cloud_vllm.api.app import create_app
from cloud_vllm.auth import keys
from cloud_vllm.engines import EngineState, GenerationChunk
from cloud_vllm.settings import Settings
from cloud_vllm.telemetry import logs
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint
from esrt.languages import Language
from tests.cloud_vllm import helpers
from tests.cloud_vllm.helpers import (
    PACKET,
    Packets,
    ScriptedEngine,
    assert_problem,
    assert_stream_adds_up,
    ready_engine,
)
from tests.tiny_checkpoint import SENTENCES, TINY

PATH = "/v1/stream?src=eng&tgt=deu"
HELLO = GenerationChunk("hello", 1)
END = GenerationChunk("<|eng|><|deu|>hallo", 3, "stop")


class GatedEngine(ScriptedEngine):
    """Answers a packet of n tokens once the n-th gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.state = EngineState.READY
        self.started.set()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.gates = [asyncio.Event() for _ in range(9)]

    def release(self, number: int) -> None:
        """Open a gate from another thread."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.gates[number].set)

    async def generate(
        self, embeddings: Float32Array, source: Language, target: Language, *, streamed: bool = True
    ) -> AsyncGenerator[GenerationChunk, None]:
        self.loop = asyncio.get_running_loop()
        self.open += 1
        self.seen.append(embeddings)
        try:
            await self.gates[len(embeddings)].wait()
            yield GenerationChunk(f"{len(embeddings)}{source.tag}{target.tag}x", 1, "stop")
        finally:
            self.open -= 1


@contextmanager
def served(settings: Settings, engine: ScriptedEngine) -> Iterator[tuple[str, uvicorn.Server]]:
    """A served gateway: its websocket address and its server."""
    with helpers.served(settings, engine) as (port, server):
        yield f"ws://127.0.0.1:{port}", server


def receive(connection: ClientConnection, segments: int) -> list[list[tuple[str, Any]]]:
    """Receive the events of a number of segments, which must arrive in order."""
    found: list[list[tuple[str, Any]]] = [[] for _ in range(segments)]
    for number in range(segments):
        while not found[number] or found[number][-1][0] not in ("done", "error"):
            message = json.loads(connection.recv(timeout=20))
            assert set(message) == {"segment", "event", "data"}
            assert message["segment"] == number
            found[number].append((message["event"], message["data"]))
    return found


def test_a_segment_says_that_it_waits(
    settings: Settings, packet: Packets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_vllm.service.translation._SILENCE_S", 0.1)
    engine = GatedEngine()
    with served(settings, engine) as (address, _), connect(address + PATH) as connection:
        connection.send(packet(0, 1))
        for _ in range(3):
            message = json.loads(connection.recv(timeout=20))
            assert message == {"segment": 0, "event": "waiting", "data": {"status": "ready"}}
        engine.release(1)
        (events,) = receive(connection, 1)
        assert_stream_adds_up([event for event in events if event[0] != "waiting"])


def test_segments_are_answered_in_order(client: TestClient, packet: Packets) -> None:
    with client.websocket_connect(PATH) as session:
        for number in range(8):
            session.send_bytes(packet(number))
        for number, sentence in enumerate(SENTENCES):
            events = []
            while not events or events[-1][0] != "done":
                message = session.receive_json()
                assert message["segment"] == number
                events.append((message["event"], message["data"]))
            done = assert_stream_adds_up(events)
            assert (done["transcript"], done["translation"]) == sentence
        session.send_text("end")
        with pytest.raises(WebSocketDisconnect) as closed:
            session.receive_json()
        assert closed.value.code == 1000


def test_segments_one_after_the_other_over_a_socket(settings: Settings, packet: Packets) -> None:
    with (
        served(settings, ScriptedEngine(HELLO, END)) as (url, _),
        connect(url + PATH) as connection,
    ):
        for _ in range(3):
            connection.send(packet())
            ((*_, (name, done)),) = receive_next(connection)
            assert (name, done["translation"]) == ("done", "hallo")
        connection.send("end")
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=5)
        assert connection.close_code == 1000


def receive_next(connection: ClientConnection) -> list[list[tuple[str, Any]]]:
    events: list[tuple[str, Any]] = []
    while not events or events[-1][0] not in ("done", "error"):
        message = json.loads(connection.recv(timeout=20))
        events.append((message["event"], message["data"]))
    return [events]


def test_a_rejected_segment_does_not_end_the_stream(settings: Settings, packet: Packets) -> None:
    with (
        served(settings, ScriptedEngine(HELLO, END)) as (url, _),
        connect(url + PATH) as connection,
    ):
        for body in (packet(), b"no packet", packet(fingerprint="0" * 16), packet()):
            connection.send(body)
        first, second, third, fourth = receive(connection, 4)
        assert first == [*fourth[:-1], first[-1]]
        assert (second[0][0], second[0][1]["status"]) == ("error", 400)
        assert third[0][1]["type"] == "urn:esrt:problem:fingerprint-mismatch"


# The last fragment alone exceeds the limit: a client that still sends may lose the close frame.
@pytest.mark.parametrize(("message", "code"), [("hello", 1003), ([bytes(1 << 20), b"."], 1009)])
def test_messages_that_end_the_stream(
    settings: Settings, message: str | list[bytes], code: int
) -> None:
    with (
        served(settings, ScriptedEngine(HELLO, END)) as (url, _),
        connect(url + PATH) as connection,
    ):
        with suppress(ConnectionClosed):  # in the middle of it
            connection.send(message)
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=5)
        assert connection.close_code == code


def test_a_stream_that_is_closed_while_events_are_due(
    settings: Settings, packet: Packets, caplog: pytest.LogCaptureFixture
) -> None:
    with served(settings, ScriptedEngine(*[HELLO] * 20, END)) as (url, _):
        for _ in range(20):
            with connect(url + PATH) as connection:
                with suppress(ConnectionClosed):
                    connection.send(packet())
                    connection.send("not a packet")
                with pytest.raises(ConnectionClosed):
                    list(connection)
                assert connection.close_code == 1003
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_shutdown_answers_segments_under_way(settings: Settings, packet: Packets) -> None:
    engine = GatedEngine()
    with served(settings, engine) as (url, server), connect(url + PATH) as connection:
        connection.send(packet(0, 1))
        while not engine.open:
            threading.Event().wait(0.01)
        server.handle_exit(signal.SIGTERM, None)
        threading.Event().wait(0.3)
        engine.release(1)
        (events,) = receive(connection, 1)
        assert events[-1][0] == "done"
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=5)
        assert connection.close_code == 1000


def send_without_end(connection: ClientConnection) -> None:
    while True:
        connection.send(b"no packet")


def test_a_client_that_does_not_read_is_disconnected(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_SEND_S", 0.3)
    listen = listener.listen

    def listen_narrowly(settings: Settings) -> socket.socket:
        bound = listen(settings)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return bound

    monkeypatch.setattr(listener, "listen", listen_narrowly)
    with served(settings, ScriptedEngine(HELLO, END)) as (url, server), socket.socket() as narrow:
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        with connect(url + PATH, sock=narrow) as connection, pytest.raises(ConnectionClosed):
            send_without_end(connection)
        end = time.monotonic() + 5
        while server.server_state.tasks or server.server_state.connections:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_the_log_does_not_hold_the_query(
    settings: Settings,
    packet: Packets,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logs.configure("json")
    with (
        served(settings, ScriptedEngine(HELLO, END)) as (url, _),
        connect(f"{url}{PATH}&key=hush") as connection,
    ):
        connection.send(packet())
        receive_next(connection)
    written = capfd.readouterr().err
    assert PATH.partition("?")[0] in written
    assert "hush" not in written


@pytest.mark.parametrize(
    ("path", "headers", "status", "kind"),
    [
        ("/v1/stream?src=eng", {}, 422, "request"),
        ("/v1/stream?src=eng&tgt=", {}, 422, "language"),
        ("/v1/stream?src=eng&tgt=xxx", {}, 422, "language"),
        ("/v1/stream?src=eng&tgt=deu&tgt=fra", {}, 422, "language"),
        (PATH, {"Origin": "https://else.example"}, 403, "forbidden"),
    ],
)
def test_rejected_handshakes(
    client: TestClient, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect(path, headers=headers),
    ):
        pass
    assert_problem(refused.value, status, kind)
    assert refused.value.headers["x-request-id"]


def test_a_stream_with_several_languages_is_rejected(
    settings: Settings, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, languages=("eng", "deu", "fra"))
    monkeypatch.setattr(app, "open_checkpoint", lambda _: replace(checkpoint, config=config))
    with (
        TestClient(create_app(settings, GatedEngine())) as client,
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect("/v1/stream?src=eng&tgt=deu,fra"),
    ):
        pass
    assert_problem(refused.value, 422, "language", "one target")


def test_an_allowed_origin(settings: Settings) -> None:
    engine = ready_engine(HELLO, END)
    named = settings.model_copy(update={"cors_origins": ("https://talk.example",)})
    with (
        TestClient(create_app(named, engine)) as client,
        client.websocket_connect(PATH, headers={"Origin": "https://talk.example"}),
    ):
        pass


def test_keys(settings: Settings, packet: Packets, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = keys.create(file, "a", keys.Scope.TRANSLATE)
    other = keys.create(file, "b", keys.Scope.METRICS)
    engine = ready_engine(HELLO, END)
    limited = settings.model_copy(
        update={"key_file": file, "key_max_concurrency": 1, "key_burst": 2}
    )
    with TestClient(create_app(limited, engine)) as client:
        for headers, status in (({}, 401), ({"Authorization": f"Bearer {other}"}, 403)):
            with (
                pytest.raises(WebSocketDenialResponse) as refused,
                client.websocket_connect(PATH, headers=headers),
            ):
                pass
            assert refused.value.status_code == status
        mine = {"Authorization": f"Bearer {key}"}
        with client.websocket_connect(PATH, headers=mine) as session:
            with (
                pytest.raises(WebSocketDenialResponse) as refused,
                client.websocket_connect(PATH, headers=mine),
            ):
                pass
            assert_problem(refused.value, 429, "too-many-requests", "streams open")
            types = []
            for revoke in (False, False, False, True):
                if revoke:
                    keys.revoke(file, key.split("_")[1])
                session.send_bytes(packet())
                while (message := session.receive_json())["event"] not in ("done", "error"):
                    pass
                types.append(message["data"].get("type", "done").rpartition(":")[2])
            assert types == ["done", "done", "too-many-requests", "unauthorized"]


class AsgiClient:
    """An ASGI client that counts the messages taken from it."""

    def __init__(self, *messages: bytes | str) -> None:
        self.messages = list(messages)
        self.taken = 0
        self.gone = asyncio.Event()
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        self.taken += 1
        if self.taken == 1:
            return {"type": "websocket.connect"}
        if not self.messages:
            await self.gone.wait()
            return {"type": "websocket.disconnect", "code": 1001}
        message = self.messages.pop(0)
        kind = "text" if isinstance(message, str) else "bytes"
        return {"type": "websocket.receive", kind: message}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def run(self, app: Any) -> None:
        path, _, query = PATH.partition("?")
        scope = {
            "type": "websocket", "path": path, "raw_path": path.encode(), "root_path": "",
            "query_string": query.encode(), "headers": [], "scheme": "ws", "state": {},
            "asgi": {"version": "3.0", "spec_version": "2.4"}, "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
        }  # fmt: skip
        await app(scope, self.receive, self.send)

    def numbers(self) -> list[int]:
        return [
            json.loads(message["text"])["segment"] for message in self.sent if "text" in message
        ]


def test_back_pressure_and_order(settings: Settings, packet: Packets) -> None:
    async def scenario() -> None:
        engine = GatedEngine()
        app = create_app(settings.model_copy(update={"stream_segments": 3}), engine)
        client = AsgiClient(*(packet(0, n) for n in (1, 2, 3, 4, 5)), "end")
        running = asyncio.create_task(client.run(app))
        await asyncio.sleep(0.2)
        assert (client.taken, engine.open) == (1 + 3, 3)
        # The second and third are done before the first, and wait for their turn.
        engine.gates[2].set()
        engine.gates[3].set()
        await asyncio.sleep(0.1)
        assert (client.taken, engine.open, client.numbers()) == (1 + 3, 1, [])
        for gate in engine.gates:
            gate.set()
        await asyncio.wait_for(running, 5)
        numbers = client.numbers()
        assert numbers == sorted(numbers)
        assert set(numbers) == {0, 1, 2, 3, 4}
        assert client.sent[-1] == {"type": "websocket.close", "code": 1000, "reason": ""}

    asyncio.run(scenario())


@pytest.mark.parametrize("ended", [False, True])
def test_a_disconnect_ends_the_decoding(settings: Settings, packet: Packets, ended: bool) -> None:
    async def scenario() -> None:
        engine = GatedEngine()
        client = AsgiClient(packet(0, 1), packet(0, 2), *(["end"] if ended else []))
        running = asyncio.create_task(client.run(create_app(settings, engine)))
        await asyncio.sleep(0.2)
        assert engine.open == 2
        client.gone.set()
        await asyncio.wait_for(running, 5)
        assert engine.open == 0

    asyncio.run(scenario())


def test_a_silent_stream_is_closed(settings: Settings, packet: Packets) -> None:
    async def scenario() -> None:
        engine = GatedEngine()
        app = create_app(settings.model_copy(update={"stream_idle_s": 0.1}), engine)
        client = AsgiClient(packet(0, 1))
        running = asyncio.create_task(client.run(app))
        await asyncio.sleep(0.3)
        assert not running.done(), "an answer is under way"
        engine.gates[1].set()
        await asyncio.wait_for(running, 5)
        assert set(client.numbers()) == {0}
        assert client.sent[-1]["type"] == "websocket.close"

    asyncio.run(scenario())


def test_a_plain_request_is_not_a_stream(client: TestClient) -> None:
    assert_problem(client.get(PATH, headers=PACKET), 404, "not-found")
