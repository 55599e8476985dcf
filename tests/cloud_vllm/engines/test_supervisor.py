"""An engine that dies, hangs or cannot be rebuilt, seen through HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI

from cloud_vllm.api.app import create_app
from cloud_vllm.engines import EngineState, GenerationChunk, Supervisor
from cloud_vllm.settings import Settings
from esrt.checkpoint import Checkpoint
from esrt.errors import EngineDied, EngineFailed
from tests.cloud_vllm.helpers import (
    EVENTS,
    PACKET,
    Packets,
    ScriptedEngine,
    assert_stream_adds_up,
    call,
    parse_events,
)

HELLO = GenerationChunk("hello", 1)
END = GenerationChunk("<|eng|><|deu|>hallo", 3, "stop")
DIED = EngineDied("The engine's process has died.", "Send the packet again.")


class MortalEngine(ScriptedEngine):
    """Dies at a point of its script; closing it wakes waiting requests, as with vLLM."""

    def __init__(self, *script: GenerationChunk | Exception | None) -> None:
        super().__init__(*script)
        self.started.set()
        self.gone = asyncio.Event()
        self.hung = False

    async def generate(self, embeddings, source, target, *, streamed=True):  # type: ignore[no-untyped-def]
        self.open += 1
        self.generating.set()
        try:
            for item in self.script:
                if item is None:
                    await self.gone.wait()
                    raise DIED
                if isinstance(item, EngineDied):
                    self.state = EngineState.FAILED
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.open -= 1

    async def close(self, *, hung: bool = False) -> None:
        self.state, self.hung = EngineState.CLOSED, hung
        self.gone.set()


class EngineFactory:
    """A factory of scripted engines that counts them."""

    def __init__(self, *engines: MortalEngine) -> None:
        self.engines = engines
        self.taken = 0

    def __call__(self) -> MortalEngine:
        self.taken += 1
        return self.engines[self.taken - 1]


@asynccontextmanager
async def served(
    checkpoint: Checkpoint, settings: Settings, factory: EngineFactory, **changes: float
) -> AsyncIterator[tuple[FastAPI, Supervisor]]:
    changed = settings.model_copy(update={"probe_interval_s": 0.0, **changes})
    supervisor = Supervisor(factory, checkpoint, changed)
    app = create_app(changed, supervisor)
    async with app.router.lifespan_context(app):
        while supervisor.state is EngineState.LOADING:
            await asyncio.sleep(0)
        yield app, supervisor


async def _ready(app: FastAPI) -> tuple[int, str]:
    status, text, _ = await call(app, [], headers={}, target="/readyz")
    return status, text.decode()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("headers", [PACKET, EVENTS])
def test_an_unsent_answer_is_decoded_again(
    checkpoint: Checkpoint, settings: Settings, packet: Packets, headers: dict[str, str]
) -> None:
    async def scenario() -> None:
        # Without streaming, text that the dead engine had decoded does not count as sent.
        script = (DIED,) if headers is EVENTS else (HELLO, DIED)
        factory = EngineFactory(MortalEngine(*script), MortalEngine(HELLO, END))
        async with served(checkpoint, settings, factory) as (app, supervisor):
            status, text, _ = await call(app, [packet()], headers=headers)
            assert status == 200
            done = parse_events(text.decode())[-1][1] if headers is EVENTS else json.loads(text)
            assert (done["transcript"], done["translation"]) == ("hello", "hallo")
            assert done["tokens"]["generated"] == 4
            await _until(lambda: supervisor.rebuilds == 1)

    asyncio.run(scenario())


def test_a_failed_request_triggers_the_rebuild_at_once(
    checkpoint: Checkpoint, settings: Settings, packet: Packets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_vllm.engines.supervisor._POLL_S", 60.0)

    async def scenario() -> None:
        died_unnoticed, dies = MortalEngine(HELLO, END), MortalEngine(DIED)
        factory = EngineFactory(died_unnoticed, dies, MortalEngine(HELLO, END))
        async with served(checkpoint, settings, factory) as (app, supervisor), asyncio.timeout(5):
            died_unnoticed.state = EngineState.FAILED
            assert (await call(app, [packet()], headers=PACKET))[0] == 200
            assert supervisor.rebuilds == 2

    asyncio.run(scenario())


def test_a_partly_sent_answer_ends_with_an_error(
    checkpoint: Checkpoint, settings: Settings, packet: Packets
) -> None:
    async def scenario() -> None:
        factory = EngineFactory(MortalEngine(HELLO, DIED), MortalEngine(HELLO, END))
        async with served(checkpoint, settings, factory) as (app, _):
            _, text, _ = await call(app, [packet()], headers=EVENTS)
            (first, delta), (name, problem) = parse_events(text.decode())
            assert (first, delta, name) == ("transcript", {"text": "hello"}, "error")
            assert (problem["status"], problem["type"]) == (503, "urn:esrt:problem:engine-failed")

    asyncio.run(scenario())


def test_an_answer_that_kills_every_engine_fails(
    checkpoint: Checkpoint, settings: Settings, packet: Packets
) -> None:
    async def scenario() -> None:
        factory = EngineFactory(*(MortalEngine(DIED) for _ in range(8)))
        async with served(checkpoint, settings, factory) as (app, _):
            status, text, _ = await call(app, [packet()], headers=PACKET)
            assert (status, json.loads(text)["type"]) == (503, "urn:esrt:problem:engine-failed")
            await _until(lambda: factory.taken == 4)
            assert factory.taken == 4

    asyncio.run(scenario())


def test_requests_during_a_rebuild_wait(
    checkpoint: Checkpoint, settings: Settings, packet: Packets
) -> None:
    async def scenario() -> None:
        first, second = MortalEngine(HELLO, END), MortalEngine(HELLO, END)
        second.started.clear()
        changes = {"max_concurrent": 2, "queue_size": 1}
        async with served(checkpoint, settings, EngineFactory(first, second), **changes) as (
            app,
            _,
        ):
            assert await _ready(app) == (200, '{"status":"ready"}')
            first.state = EngineState.FAILED
            status, text = await _ready(app)
            assert status == 503 and "rebuilt" in text
            # Requests are admitted up to the limit, and wait.
            requests = [
                asyncio.create_task(call(app, [packet()], headers=headers))
                for headers in (PACKET, EVENTS, PACKET)
            ]
            await asyncio.sleep(0.3)
            assert not any(task.done() for task in requests)
            status, text_, _ = await call(app, [packet()], headers=PACKET)
            assert (status, json.loads(text_)["type"]) == (503, "urn:esrt:problem:overloaded")
            second.started.set()
            assert [status for status, _, _ in await asyncio.gather(*requests)] == [200, 200, 200]
            assert (await _ready(app))[0] == 200

    asyncio.run(scenario())


def test_a_stream_says_that_the_engine_is_rebuilt(
    checkpoint: Checkpoint, settings: Settings, packet: Packets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_vllm.service.translation._SILENCE_S", 0.1)

    async def scenario() -> None:
        first, second = MortalEngine(HELLO, END), MortalEngine(HELLO, END)
        second.started.clear()
        async with served(checkpoint, settings, EngineFactory(first, second)) as (app, _):
            first.state = EngineState.FAILED
            request = asyncio.create_task(call(app, [packet()], headers=EVENTS))
            await asyncio.sleep(0.55)
            second.started.set()
            events = parse_events((await request)[1].decode())
            waiting = [event for event in events if event[0] == "waiting"]
            assert 3 <= len(waiting) <= 6
            assert events[: len(waiting)] == [("waiting", {"status": "rebuilding"})] * len(waiting)
            assert_stream_adds_up(events[len(waiting) :])

    asyncio.run(scenario())


def test_a_rebuild_longer_than_the_deadline(
    checkpoint: Checkpoint, settings: Settings, packet: Packets
) -> None:
    async def scenario() -> None:
        first, second = MortalEngine(DIED), MortalEngine()
        second.started.clear()
        factory = EngineFactory(first, second)
        async with served(checkpoint, settings, factory, deadline_s=0.3) as (app, _):
            status, text, _ = await call(app, [packet()], headers=PACKET)
            assert (status, json.loads(text)["type"]) == (503, "urn:esrt:problem:engine-failed")
            second.started.set()

    asyncio.run(scenario())


def test_a_failed_rebuild_is_repeated(
    checkpoint: Checkpoint, settings: Settings, packet: Packets
) -> None:
    async def scenario() -> None:
        broken = MortalEngine()
        broken.error = EngineFailed("No memory.", "Free some.")
        factory = EngineFactory(MortalEngine(DIED), broken, MortalEngine(HELLO, END))
        async with served(checkpoint, settings, factory) as (app, supervisor):
            status, text, _ = await call(app, [packet()], headers=PACKET)
            assert (status, json.loads(text)["type"]) == (503, "urn:esrt:problem:engine-failed")
            assert (await _ready(app))[0] == 503
            await _until(lambda: supervisor.state is EngineState.READY)
            assert (await call(app, [packet()], headers=PACKET))[0] == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("busy", [False, True])
def test_a_hung_engine_is_detected_and_replaced(
    checkpoint: Checkpoint, settings: Settings, packet: Packets, busy: bool
) -> None:
    async def scenario() -> None:
        first = MortalEngine(None)
        factory = EngineFactory(first, MortalEngine(HELLO, END))
        changes = {"probe_interval_s": 0.1, "probe_timeout_s": 0.1}
        async with served(checkpoint, settings, factory, **changes) as (app, supervisor):
            if busy:
                status, _, _ = await call(app, [packet()], headers=PACKET)
                assert status == 200, "decoded anew by the second engine"
            await _until(lambda: supervisor.rebuilds == 1)
            assert first.hung and first.open == 0
            await asyncio.sleep(0.5)
            assert (factory.taken, supervisor.state) == (2, EngineState.READY)

    asyncio.run(scenario())


def test_a_slow_engine_is_not_replaced(
    checkpoint: Checkpoint, settings: Settings, packet: Packets
) -> None:
    class Slow(MortalEngine):
        async def generate(self, embeddings, source, target, *, streamed=True):  # type: ignore[no-untyped-def]
            if len(embeddings) == 1:
                await asyncio.Event().wait()
            for _ in range(10):
                await asyncio.sleep(0.15)
                yield HELLO
            yield END

    async def scenario() -> None:
        factory, changes = (
            EngineFactory(Slow(), MortalEngine()),
            {"probe_interval_s": 0.1, "probe_timeout_s": 0.2},
        )
        async with served(checkpoint, settings, factory, **changes) as (app, supervisor):
            assert (await call(app, [packet()], headers=PACKET))[0] == 200
            assert supervisor.rebuilds == 0

    asyncio.run(scenario())


def test_closing_during_a_rebuild(checkpoint: Checkpoint, settings: Settings) -> None:
    async def scenario() -> None:
        first, second = MortalEngine(), MortalEngine()
        second.started.clear()
        factory = EngineFactory(first, second)
        async with served(checkpoint, settings, factory):
            first.state = EngineState.FAILED
            await _until(lambda: factory.taken == 2)
        assert (second.state, factory.taken) == (EngineState.CLOSED, 2)

    asyncio.run(scenario())
