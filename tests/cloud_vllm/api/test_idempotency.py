"""Retries with an Idempotency-Key."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cloud_vllm.api.app import create_app
from cloud_vllm.auth import keys
from cloud_vllm.engines import GenerationChunk
from cloud_vllm.settings import Settings
from esrt.errors import EngineFailed
from tests.cloud_vllm.helpers import (
    EVENTS,
    PACKET,
    URL,
    Clock,
    Packets,
    ScriptedEngine,
    assert_problem,
    assert_stream_adds_up,
    call,
    parse_events,
    ready_engine,
    wait_until_ready,
)

HELLO = GenerationChunk("hello", 1)
END = GenerationChunk("<|eng|><|deu|>hallo", 3, "stop")
KEY = {"Idempotency-Key": "a1"}


@pytest.fixture
def engine() -> ScriptedEngine:
    engine = ScriptedEngine(HELLO, END)
    engine.started.set()
    return engine


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(settings: Settings, engine: ScriptedEngine, clock: Clock) -> Iterator[TestClient]:
    with TestClient(create_app(settings, engine, clock)) as client:
        wait_until_ready(client)
        yield client


def test_a_retry_gets_the_same_answer(
    client: TestClient, engine: ScriptedEngine, packet: Packets
) -> None:
    first = client.post(URL, content=packet(), headers={**PACKET, **KEY})
    assert (first.status_code, len(engine.seen)) == (200, 1)
    again = client.post(URL, content=packet(), headers={**PACKET, **KEY})
    assert (again.text, len(engine.seen)) == (first.text, 1)
    stream = client.post(URL, content=packet(), headers={**EVENTS, **KEY})
    assert assert_stream_adds_up(parse_events(stream.text)) == first.json()
    assert len(engine.seen) == 1
    other = client.post(URL, content=packet(), headers={**PACKET, "Idempotency-Key": "a2"})
    assert (other.status_code, len(engine.seen)) == (200, 2)


def test_a_stream_can_be_replayed(
    client: TestClient, engine: ScriptedEngine, packet: Packets
) -> None:
    first = client.post(URL, content=packet(), headers={**EVENTS, **KEY})
    again = client.post(URL, content=packet(), headers={**EVENTS, **KEY})
    assert again.text == first.text
    assert len(engine.seen) == 1


def test_a_reused_key_is_rejected(client: TestClient, packet: Packets) -> None:
    assert client.post(URL, content=packet(), headers={**PACKET, **KEY}).status_code == 200
    for url, body in ((URL, packet(1)), ("/v1/translate?src=deu&tgt=eng", packet())):
        response = client.post(url, content=body, headers={**PACKET, **KEY})
        assert_problem(response, 422, "idempotency-key", "another request")


@pytest.mark.parametrize("key", ["", "a b", "x" * 256])
def test_a_malformed_key_is_rejected(client: TestClient, packet: Packets, key: str) -> None:
    headers = {**PACKET, "Idempotency-Key": key}
    assert_problem(client.post(URL, content=packet(), headers=headers), 422, "request")


def test_a_failure_is_not_kept(client: TestClient, engine: ScriptedEngine, packet: Packets) -> None:
    engine.script = (HELLO, EngineFailed("The engine died.", "Wait."))
    for headers in (PACKET, EVENTS):
        client.post(URL, content=packet(), headers={**headers, **KEY})
    engine.script = (HELLO, END)
    assert client.post(URL, content=packet(), headers={**PACKET, **KEY}).status_code == 200
    assert len(engine.seen) == 3


def test_answers_expire(
    client: TestClient, engine: ScriptedEngine, clock: Clock, packet: Packets
) -> None:
    for seconds, decoded in ((0, 1), (299, 1), (2, 2)):
        clock.now += seconds
        client.post(URL, content=packet(), headers={**PACKET, **KEY})
        assert len(engine.seen) == decoded


def test_the_oldest_answers_are_dropped_at_the_capacity(
    settings: Settings, engine: ScriptedEngine, packet: Packets
) -> None:
    with TestClient(create_app(settings, engine)) as client:
        wait_until_ready(client)
        size = len(client.post(URL, content=packet(), headers=PACKET).content)
    engine = ScriptedEngine(HELLO, END)
    engine.started.set()
    changed = settings.model_copy(update={"idempotency_bytes": 5 * size // 2})
    with TestClient(create_app(changed, engine)) as client:
        wait_until_ready(client)
        for name, decoded in (("a", 1), ("b", 2), ("c", 3), ("c", 3), ("a", 4)):
            headers = {**PACKET, "Idempotency-Key": name}
            assert client.post(URL, content=packet(), headers=headers).status_code == 200
            assert len(engine.seen) == decoded


def test_keys_of_different_clients_are_separate(
    settings: Settings, engine: ScriptedEngine, packet: Packets, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    ours = [keys.create(file, name, keys.Scope.TRANSLATE) for name in "ab"]
    changed = settings.model_copy(update={"key_file": file})
    with TestClient(create_app(changed, engine)) as client:
        wait_until_ready(client)
        for number, key in enumerate(ours):
            headers = {**PACKET, **KEY, "Authorization": f"Bearer {key}"}
            # Another's key of the same name is unknown, whatever it stands for.
            response = client.post(URL, content=packet(number), headers=headers)
            assert (response.status_code, len(engine.seen)) == (200, number + 1)


def test_duplicates_wait_for_the_first(settings: Settings, packet: Packets) -> None:
    async def scenario() -> None:
        engine, gone = ready_engine(HELLO, None), asyncio.Event()
        app = create_app(settings, engine)

        def ask(hang_up: asyncio.Event | None = None) -> asyncio.Task[tuple[int, bytes, int]]:
            headers = {**PACKET, **KEY}
            return asyncio.create_task(call(app, [packet()], headers=headers, hang_up=hang_up))

        first = ask(gone)
        await engine.generating.wait()
        others = [ask(), ask()]
        await asyncio.sleep(0.1)
        assert engine.open == 1
        # The first client goes: the next that waits is decoded, and answers the last too.
        engine.script = (HELLO, END)
        gone.set()
        await first
        found = [(status, json.loads(text)) for status, text, _ in await asyncio.gather(*others)]
        assert found[0] == found[1]
        assert found[0][0] == 200 and found[0][1]["translation"] == "hallo"
        assert len(engine.seen) == 2

    asyncio.run(scenario())
