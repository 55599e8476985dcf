"""Rate and concurrency limits of a key and of the gateway."""

import asyncio
import json
from pathlib import Path

import pytest

from cloud_vllm.api.app import create_app
from cloud_vllm.auth import keys
from cloud_vllm.engines import GenerationChunk
from cloud_vllm.service.limits import Limits, RateLimit
from cloud_vllm.settings import Settings
from esrt.errors import Overloaded, TooManyRequests
from tests.cloud_vllm.helpers import (
    EVENTS,
    PACKET,
    Clock,
    Packets,
    call,
    ready_engine,
)

HELLO = GenerationChunk("hello", 1)


def test_a_bucket_empties_and_fills() -> None:
    clock = Clock()
    rate = RateLimit(2.0, 3, clock)
    assert [rate.take("a", 1) for _ in range(4)] == [0, 0, 0, 0.5]
    assert rate.take("b", 1) == 0
    clock.now += 0.5
    assert [rate.take("a", 1) for _ in range(2)] == [0, 0.5]
    clock.now += 1000
    assert [rate.take("a", 1) for _ in range(4)] == [0, 0, 0, 0.5]


def test_an_amount_beyond_the_capacity_is_owed() -> None:
    clock = Clock()
    rate = RateLimit(2.0, 3, clock)
    assert rate.take("a", 5) == 0
    assert rate.take("a", 1) == 1.5
    clock.now += 1.5
    assert rate.take("a", 1) == 0


def test_the_long_run_is_exact() -> None:
    clock = Clock()
    rate, passed = RateLimit(10.0, 1, clock), 0
    for _ in range(1000):
        clock.now += 0.01
        passed += rate.take("a", 1) == 0
    assert passed == 100


def test_concurrency_limit_of_a_key() -> None:
    limits = Limits(Settings(key_max_concurrency=3))
    with limits.admit("a", 2), limits.admit("a"):
        with pytest.raises(TooManyRequests, match="3 answers in progress"), limits.admit("a"):
            pass
        with limits.admit("b", 9), limits.admit(None):
            assert limits.admitted == 13
    assert limits.admitted == 0
    with limits.admit("a", 3):
        pass


def test_limit_of_the_gateway() -> None:
    limits = Limits(Settings(max_concurrent=2, queue_size=1))
    with limits.admit(None), limits.admit("a"), limits.admit("b"):
        for key in (None, "a", "c"):
            with pytest.raises(Overloaded) as refused, limits.admit(key):
                pass
            assert refused.value.retry_after > 0
    with limits.admit(None, 3):
        pass


def test_a_rejected_request_takes_no_place() -> None:
    limits = Limits(Settings(key_burst=1, key_rate=1.0, max_concurrent=1, queue_size=0), Clock())
    with limits.admit(None), pytest.raises(Overloaded), limits.admit("a"):
        pass
    with limits.admit("a"):
        pass
    with pytest.raises(TooManyRequests), limits.admit("a"):
        pass
    assert limits.admitted == 0


@pytest.mark.parametrize("headers", [PACKET, EVENTS])
@pytest.mark.parametrize(
    ("changes", "status", "kind"),
    [
        ({"max_concurrent": 1, "queue_size": 0}, 503, "overloaded"),
        ({"key_max_concurrency": 1}, 429, "too-many-requests"),
        ({"key_burst": 1, "key_rate": 0.01}, 429, "too-many-requests"),
    ],
)
def test_a_place_is_occupied_until_the_answer_is_sent(
    settings: Settings,
    packet: Packets,
    tmp_path: Path,
    headers: dict[str, str],
    changes: dict[str, float],
    status: int,
    kind: str,
) -> None:
    file = tmp_path / "keys.json"
    key = keys.create(file, "a", keys.Scope.TRANSLATE)

    async def scenario() -> None:
        engine, gone = ready_engine(HELLO, None), asyncio.Event()
        app = create_app(settings.model_copy(update={**changes, "key_file": file}), engine)
        sent = {**headers, "Authorization": f"Bearer {key}"}
        first = asyncio.create_task(call(app, [packet()], headers=sent, hang_up=gone))
        await engine.generating.wait()
        found, text, read = await call(app, [packet()], headers=sent)
        assert (found, read) == (status, 0)
        assert json.loads(text)["type"] == f"urn:esrt:problem:{kind}"
        gone.set()
        await asyncio.wait_for(first, 5)
        if "key_rate" not in changes:
            engine.script = (GenerationChunk("hello<|eng|><|deu|>hallo", 3, "stop"),)
            assert (await call(app, [packet()], headers=sent))[0] == 200

    asyncio.run(scenario())
