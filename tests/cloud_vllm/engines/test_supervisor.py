"""An engine that dies, hangs or does not come back, seen from outside."""

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
from tests.cloud_vllm.helpers import EVENTS, PACKET, Packets, ScriptedEngine, call, parse_events

HELLO = GenerationChunk("hello", 1)
END = GenerationChunk("<|eng|><|deu|>hallo", 3, "stop")
DIED = EngineDied("The engine's process has died.", "Send the packet again.")


class Mortal(ScriptedEngine):
    """Dies where its script says so; wakes whoever waits when it is closed, as vLLM does."""

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


class Line:
    """Engines, one after the other, and how many have been taken."""

    def __init__(self, *engines: Mortal) -> None:
        self.engines = engines
        self.taken = 0

    def __call__(self) -> Mortal:
        self.taken += 1
        return self.engines[self.taken - 1]


@asynccontextmanager
async def served(
    checkpoint: Checkpoint, settings: Settings, line: Line, **changes: float
) -> AsyncIterator[tuple[FastAPI, Supervisor]]:
    changed = settings.model_copy(update={"canary_s": 0.0, **changes})
    supervisor = Supervisor(line, checkpoint, changed)
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
def test_an_answer_of_which_nothing_was_sent_is_decoded_anew(
    checkpoint: Checkpoint, settings: Settings, packet: Packets, headers: dict[str, str]
) -> None:
    async def scenario() -> None:
        # Without streaming, text that the dead engine had decoded does not count as sent.
        script = (DIED,) if headers is EVENTS else (HELLO, DIED)
        line = Line(Mortal(*script), Mortal(HELLO, END))
        async with served(checkpoint, settings, line) as (app, supervisor):
            status, text, _ = await call(app, [packet()], headers=headers)
            assert status == 200
            done = parse_events(text.decode())[-1][1] if headers is EVENTS else json.loads(text)
            assert (done["transcript"], done["translation"]) == ("hello", "hallo")
            assert done["tokens"]["generated"] == 4
            await _until(lambda: supervisor.rebuilds == 1)

    asyncio.run(scenario())


def test_a_death_that_a_request_meets_is_not_waited_for(
    checkpoint: Checkpoint, settings: Settings, packet: Packets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_vllm.engines.supervisor._POLL_S", 60.0)

    async def scenario() -> None:
        died_unseen, dies = Mortal(HELLO, END), Mortal(DIED)
        line = Line(died_unseen, dies, Mortal(HELLO, END))
        async with served(checkpoint, settings, line) as (app, supervisor), asyncio.timeout(5):
            died_unseen.state = EngineState.FAILED
            assert (await call(app, [packet()], headers=PACKET))[0] == 200
            assert supervisor.rebuilds == 2

    asyncio.run(scenario())


def test_an_answer_that_was_begun_ends_with_an_error(
    checkpoint: Checkpoint, settings: Settings, packet: Packets
) -> None:
    async def scenario() -> None:
        line = Line(Mortal(HELLO, DIED), Mortal(HELLO, END))
        async with served(checkpoint, settings, line) as (app, _):
            _, text, _ = await call(app, [packet()], headers=EVENTS)
            (first, delta), (name, problem) = parse_events(text.decode())
            assert (first, delta, name) == ("transcript", {"text": "hello"}, "error")
            assert (problem["status"], problem["type"]) == (503, "urn:esrt:problem:engine-failed")

    asyncio.run(scenario())


def test_an_answer_that_kills_every_engine_ends(
    checkpoint: Checkpoint, settings: Settings, packet: Packets
) -> None:
    async def scenario() -> None:
        line = Line(*(Mortal(DIED) for _ in range(8)))
        async with served(checkpoint, settings, line) as (app, _):
            status, text, _ = await call(app, [packet()], headers=PACKET)
            assert (status, json.loads(text)["type"]) == (503, "urn:esrt:problem:engine-failed")
            await _until(lambda: line.taken == 4)
            assert line.taken == 4

    asyncio.run(scenario())


def test_while_it_is_rebuilt(checkpoint: Checkpoint, settings: Settings, packet: Packets) -> None:
    async def scenario() -> None:
        first, second = Mortal(HELLO, END), Mortal(HELLO, END)
        second.started.clear()
        changes = {"max_concurrent": 2, "queue_size": 1}
        async with served(checkpoint, settings, Line(first, second), **changes) as (app, _):
            assert await _ready(app) == (200, '{"status":"ready"}')
            first.state = EngineState.FAILED
            status, text = await _ready(app)
            assert status == 503 and "rebuilt" in text
            # Answers are taken on and wait, as many as there are places.
            asked = [
                asyncio.create_task(call(app, [packet()], headers=headers))
                for headers in (PACKET, EVENTS, PACKET)
            ]
            await asyncio.sleep(0.3)
            assert not any(task.done() for task in asked)
            status, text_, _ = await call(app, [packet()], headers=PACKET)
            assert (status, json.loads(text_)["type"]) == (503, "urn:esrt:problem:overloaded")
            second.started.set()
            assert [status for status, _, _ in await asyncio.gather(*asked)] == [200, 200, 200]
            assert (await _ready(app))[0] == 200

    asyncio.run(scenario())


def test_one_that_takes_too_long_to_rebuild(
    checkpoint: Checkpoint, settings: Settings, packet: Packets
) -> None:
    async def scenario() -> None:
        first, second = Mortal(DIED), Mortal()
        second.started.clear()
        line = Line(first, second)
        async with served(checkpoint, settings, line, deadline_s=0.3) as (app, _):
            status, text, _ = await call(app, [packet()], headers=PACKET)
            assert (status, json.loads(text)["type"]) == (503, "urn:esrt:problem:engine-failed")
            second.started.set()

    asyncio.run(scenario())


def test_one_that_cannot_be_rebuilt_is_tried_again(
    checkpoint: Checkpoint, settings: Settings, packet: Packets
) -> None:
    async def scenario() -> None:
        broken = Mortal()
        broken.error = EngineFailed("No memory.", "Free some.")
        line = Line(Mortal(DIED), broken, Mortal(HELLO, END))
        async with served(checkpoint, settings, line) as (app, supervisor):
            status, text, _ = await call(app, [packet()], headers=PACKET)
            assert (status, json.loads(text)["type"]) == (503, "urn:esrt:problem:engine-failed")
            assert (await _ready(app))[0] == 503
            await _until(lambda: supervisor.state is EngineState.READY)
            assert (await call(app, [packet()], headers=PACKET))[0] == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("busy", [False, True])
def test_a_hung_engine_is_found_and_replaced(
    checkpoint: Checkpoint, settings: Settings, packet: Packets, busy: bool
) -> None:
    async def scenario() -> None:
        first = Mortal(None)
        line = Line(first, Mortal(HELLO, END))
        changes = {"canary_s": 0.1, "canary_timeout_s": 0.1}
        async with served(checkpoint, settings, line, **changes) as (app, supervisor):
            if busy:
                status, _, _ = await call(app, [packet()], headers=PACKET)
                assert status == 200, "decoded anew by the second engine"
            await _until(lambda: supervisor.rebuilds == 1)
            assert first.hung and first.open == 0
            await asyncio.sleep(0.5)
            assert (line.taken, supervisor.state) == (2, EngineState.READY)

    asyncio.run(scenario())


def test_a_slow_engine_that_goes_on_is_left_alone(
    checkpoint: Checkpoint, settings: Settings, packet: Packets
) -> None:
    class Slow(Mortal):
        async def generate(self, embeddings, source, target, *, streamed=True):  # type: ignore[no-untyped-def]
            if len(embeddings) == 1:
                await asyncio.Event().wait()
            for _ in range(10):
                await asyncio.sleep(0.15)
                yield HELLO
            yield END

    async def scenario() -> None:
        line, changes = Line(Slow(), Mortal()), {"canary_s": 0.1, "canary_timeout_s": 0.2}
        async with served(checkpoint, settings, line, **changes) as (app, supervisor):
            assert (await call(app, [packet()], headers=PACKET))[0] == 200
            assert supervisor.rebuilds == 0

    asyncio.run(scenario())


def test_closing_while_it_is_rebuilt(checkpoint: Checkpoint, settings: Settings) -> None:
    async def scenario() -> None:
        first, second = Mortal(), Mortal()
        second.started.clear()
        line = Line(first, second)
        async with served(checkpoint, settings, line):
            first.state = EngineState.FAILED
            await _until(lambda: line.taken == 2)
        assert (second.state, line.taken) == (EngineState.CLOSED, 2)

    asyncio.run(scenario())
