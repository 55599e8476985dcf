"""Shared by these tests: headers, scripted engines, events, an ASGI client."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from cloud_vllm import listener
from cloud_vllm.api.app import create_app
from cloud_vllm.engines import EngineState, GenerationChunk
from cloud_vllm.server import configure
from cloud_vllm.settings import Settings
from esrt.arrays import Float32Array
from esrt.errors import EngineFailed
from esrt.languages import Language

URL = "/v1/translate?src=eng&tgt=deu"
PACKET = {"Content-Type": "application/vnd.esrt.features"}
EVENTS = {**PACKET, "Accept": "text/event-stream"}
MAX_NEW_TOKENS = 48

Packets = Callable[..., bytes]
Reference = Callable[[bytes, str, str], str]
# The text, the mean log-probability of each part, and why decoding ended.
Expected = tuple[str, dict[str, float | None], str]
Scored = Callable[[bytes, str, str], Expected]


class ScriptedEngine:
    """Yields the chunks of a script, raises the errors among them, and hangs at a None."""

    def __init__(self, *script: GenerationChunk | Exception | None) -> None:
        self.script = script
        self.state = EngineState.LOADING
        self.started = asyncio.Event()
        self.generating = asyncio.Event()
        self.open = 0
        self.error: Exception | None = None
        self.seen: list[Float32Array] = []

    async def start(self) -> None:
        await self.started.wait()
        if self.error is not None:
            self.state = EngineState.FAILED
            raise self.error
        self.state = EngineState.READY

    async def generate(
        self, embeddings: Float32Array, source: Language, target: Language, *, streamed: bool = True
    ) -> AsyncGenerator[GenerationChunk, None]:
        self.open += 1
        self.seen.append(embeddings)
        self.generating.set()
        try:
            for item in self.script:
                if item is None:
                    await asyncio.Event().wait()
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            self.open -= 1

    async def close(self, *, hung: bool = False) -> None:
        self.state = EngineState.CLOSED


def ready_engine(*script: GenerationChunk | Exception | None) -> ScriptedEngine:
    """A scripted engine that is loaded already."""
    engine = ScriptedEngine(*script)
    engine.state = EngineState.READY
    engine.started.set()
    return engine


class Polyglot(ScriptedEngine):
    """Answers in the target language, or fails or hangs for one language."""

    def __init__(self, *, failing: str = "", hanging: str = "") -> None:
        super().__init__()
        self.state = EngineState.READY
        self.started.set()
        self.failing, self.hanging = failing, hanging

    async def generate(
        self, embeddings: Float32Array, source: Language, target: Language, *, streamed: bool = True
    ) -> AsyncGenerator[GenerationChunk, None]:
        self.open += 1
        self.seen.append(embeddings)
        self.generating.set()
        try:
            yield GenerationChunk("hello", 1)
            await asyncio.sleep(0)
            if target.code == self.failing:
                raise EngineFailed("The engine died.", "Wait.")
            if target.code == self.hanging:
                await asyncio.Event().wait()
            yield GenerationChunk(f"{source.tag}{target.tag}in {target.name}", 3, "stop")
        finally:
            self.open -= 1


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def assert_problem(response: httpx.Response, status: int, kind: str, *words: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "remedy"}
    assert problem["type"] == f"urn:esrt:problem:{kind}"
    assert problem["status"] == status
    assert all(problem[key] for key in problem)
    assert "Traceback" not in response.text
    for word in words:
        assert word in problem["detail"]


def parse_events(text: str) -> list[tuple[str, Any]]:
    """The (name, data) of each event of a stream."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


def assert_stream_adds_up(events: list[tuple[str, Any]]) -> dict[str, Any]:
    """Check the order of events, and that the text events join to the answer."""
    names = [name for name, _ in events]
    assert names == sorted(names, key=["transcript", "translation", "done"].index)
    assert names.count("done") == 1
    done: dict[str, Any] = events[-1][1]
    for part in ("transcript", "translation"):
        assert "".join(data["text"] for name, data in events if name == part) == done[part]
    return done


def without_times(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key != "timings_ms"}


def wait_until_ready(client: TestClient | httpx.Client, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < end, client.get("/readyz").text
        time.sleep(0.05)


async def call(
    app: FastAPI,
    body: Iterable[bytes],
    *,
    headers: dict[str, str],
    hang_up: asyncio.Event | None = None,
    receive: Callable[[], Awaitable[Any]] | None = None,
    target: str | None = None,
) -> tuple[int, bytes, int]:
    """Send a request below any client library, which would correct or buffer it.

    Returns:
        Status, body, and how many chunks of the request were read.
    """
    chunks, read, sent = list(body), 0, []

    async def receive_chunk() -> dict[str, Any]:
        nonlocal read
        if read < len(chunks):
            read += 1
            return {
                "type": "http.request",
                "body": chunks[read - 1],
                "more_body": read < len(chunks),
            }
        await (hang_up or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    route, _, query = (target or URL).partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST" if query else "GET",
        "scheme": "http",
        "path": route,
        "raw_path": route.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": {},
    }
    await app(scope, receive or receive_chunk, send)
    text = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], text, read


@contextmanager
def served(settings: Settings, engine: ScriptedEngine) -> Iterator[tuple[int, uvicorn.Server]]:
    """A gateway on a free port, with real sockets and a ready engine."""
    engine.state = EngineState.READY
    engine.started.set()
    server = uvicorn.Server(configure(create_app(settings, engine), settings))
    with listener.listen(settings.model_copy(update={"port": 0})) as bound:
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        try:
            yield bound.getsockname()[1], server
        finally:
            server.handle_exit(signal.SIGTERM, None)
            thread.join(20)
            assert not thread.is_alive()
