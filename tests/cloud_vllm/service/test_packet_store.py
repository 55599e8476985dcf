"""Several languages for one packet, and packets kept in memory."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cloud_vllm.api import app, handlers
from cloud_vllm.api.app import create_app
from cloud_vllm.auth import keys
from cloud_vllm.service.packet_store import PacketStore
from cloud_vllm.settings import Settings
from esrt.checkpoint import Checkpoint
from esrt.errors import Overloaded, TooManyRequests, UnknownFeatures
from tests.cloud_vllm.helpers import (
    EVENTS,
    PACKET,
    URL,
    Clock,
    Packets,
    Polyglot,
    assert_problem,
    assert_stream_adds_up,
    call,
    parse_events,
    wait_until_ready,
    without_times,
)
from tests.tiny_checkpoint import SENTENCES, TINY

SEVERAL = "/v1/translate?src=eng&tgt=deu,spa&tgt=fra"


@pytest.fixture(autouse=True)
def _four_languages(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> None:
    config = replace(TINY, languages=("eng", "deu", "fra", "spa"))
    monkeypatch.setattr(app, "open_checkpoint", lambda _: replace(checkpoint, config=config))


@pytest.fixture
def engine() -> Polyglot:
    return Polyglot()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(settings: Settings, engine: Polyglot, clock: Clock) -> Iterator[TestClient]:
    with TestClient(create_app(settings, engine, clock)) as client:
        yield client


def test_several_languages_as_json(client: TestClient, packet: Packets) -> None:
    answer = client.post(SEVERAL, content=packet(), headers=PACKET).json()
    assert list(answer) == ["answers"]
    found = [(one["tgt"], one["transcript"], one["translation"]) for one in answer["answers"]]
    assert found == [
        ("deu", "hello", "in German"),
        ("spa", "hello", "in Spanish"),
        ("fra", "hello", "in French"),
    ]


def test_several_languages_as_events(client: TestClient, packet: Packets) -> None:
    events = parse_events(client.post(SEVERAL, content=packet(), headers=EVENTS).text)
    for code in ("deu", "spa", "fra"):
        mine = [(name, data) for name, data in events if data["tgt"] == code]
        assert assert_stream_adds_up(mine)["src"] == "eng"
    assert [name for name, _ in events[:3]] == ["transcript"] * 3, "one after the other"


def test_one_language_gives_a_plain_answer(client: TestClient, packet: Packets) -> None:
    answer = client.post(URL, content=packet(), headers=PACKET).json()
    events = parse_events(client.post(URL, content=packet(), headers=EVENTS).text)
    assert [data for name, data in events if name != "done"] == [
        {"text": "hello"},
        {"text": "in German"},
    ]
    assert without_times(events[-1][1]) == without_times(answer)
    assert "answers" not in answer


@pytest.mark.parametrize(
    ("tgt", "word"),
    [("deu,deu", "twice"), ("deu,", "''"), ("deu,eng", "both"), ("deu,ita", "Ital")],
)
def test_invalid_combinations_of_languages(
    client: TestClient, packet: Packets, tgt: str, word: str
) -> None:
    url = f"/v1/translate?src=eng&tgt={tgt}"
    assert_problem(client.post(url, content=packet(), headers=PACKET), 422, "language", word)


def test_one_failure_ends_all(settings: Settings, packet: Packets) -> None:
    engine = Polyglot(failing="spa", hanging="fra")
    with TestClient(create_app(settings, engine)) as client:
        response = client.post(SEVERAL, content=packet(), headers=PACKET)
        assert_problem(response, 503, "engine-failed")
        events = parse_events(client.post(SEVERAL, content=packet(), headers=EVENTS).text)
        assert events[-1] == ("error", response.json())
        assert engine.open == 0


@pytest.mark.parametrize("headers", [PACKET, EVENTS])
def test_a_disconnect_ends_all_answers(
    settings: Settings, packet: Packets, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.cloud_vllm.helpers.URL", SEVERAL)

    async def scenario() -> None:
        engine, gone = Polyglot(hanging="fra"), asyncio.Event()
        app = create_app(settings, engine)
        request = asyncio.create_task(call(app, [packet()], headers=headers, hang_up=gone))
        await engine.generating.wait()
        await asyncio.sleep(0.05)
        assert len(engine.seen) == 3
        gone.set()
        await asyncio.wait_for(request, 5)
        await asyncio.sleep(0.01)
        assert engine.open == 0

    asyncio.run(scenario())


def test_languages_count_against_the_limits(
    settings: Settings, packet: Packets, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    key = keys.create(file, "a", keys.Scope.TRANSLATE)
    update = {"key_file": file, "key_rate": 0.5, "key_burst": 4}
    with TestClient(create_app(settings.model_copy(update=update), Polyglot(), Clock())) as client:
        headers = {**PACKET, "Authorization": f"Bearer {key}"}
        assert client.post(SEVERAL, content=packet(), headers=headers).status_code == 200
        response = client.post(SEVERAL, content=packet(), headers=headers)
        assert_problem(response, 429, "too-many-requests")
        assert response.headers["retry-after"] == "4"
        assert client.post(URL, content=packet(), headers=headers).status_code == 200


def keep(client: TestClient, body: bytes, **headers: str) -> str:
    response = client.post("/v1/features", content=body, headers=PACKET | headers)
    assert response.status_code == 201, response.text
    handle: str = response.json()["features"]
    return handle


def test_kept_features_translate_like_the_packet(client: TestClient, packet: Packets) -> None:
    body = packet(2, 9)
    response = client.post("/v1/features", content=body, headers=PACKET)
    kept = response.json()
    assert (response.status_code, kept["expires_in_s"], kept["tokens"]) == (201, 300, 9)
    assert len(kept["features"]) == 43
    for code in ("deu", "fra"):
        url = f"/v1/translate?src=eng&tgt={code}"
        answer = client.post(f"{url}&features={kept['features']}").json()
        expected = client.post(url, content=body, headers=PACKET).json()
        assert without_times(answer) == without_times(expected)


def test_kept_features_expire(client: TestClient, packet: Packets, clock: Clock) -> None:
    url = f"{URL}&features={keep(client, packet())}"
    clock.now += 299
    assert client.post(url).status_code == 200
    clock.now += 1
    assert_problem(client.post(url), 404, "features-unknown")


def test_kept_features_can_be_erased(client: TestClient, packet: Packets) -> None:
    handle, other = keep(client, packet()), keep(client, packet())
    path = f"/v1/features/{handle}"
    assert client.delete(path).status_code == 204
    assert_problem(client.delete(path), 404, "features-unknown")
    assert_problem(client.post(f"{URL}&features={handle}"), 404, "features-unknown")
    assert client.post(f"{URL}&features={other}").status_code == 200


def test_kept_features_belong_to_one_key(
    settings: Settings, packet: Packets, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    mine, theirs = (
        {"Authorization": f"Bearer {keys.create(file, name, keys.Scope.TRANSLATE)}"}
        for name in ("mine", "theirs")
    )
    app = create_app(settings.model_copy(update={"key_file": file}), Polyglot())
    with TestClient(app) as client:
        handle = keep(client, packet(), **mine)
        url = f"{URL}&features={handle}"
        refused = [client.post(url, headers=theirs), client.post(f"{URL}&features=x", headers=mine)]
        refused.append(client.delete(f"/v1/features/{handle}", headers=theirs))
        for response in refused:
            assert_problem(response, 404, "features-unknown")
        assert len({response.text for response in refused}) == 1
        assert client.post(url, headers=mine).status_code == 200
        assert client.post(url).status_code == 401


def test_only_valid_packets_are_kept(client: TestClient, packet: Packets) -> None:
    refused = [
        (b"ESRT", PACKET, 400),
        (packet(fingerprint="0123456789abcdef"), PACKET, 409),
        (packet(), {"Content-Type": "audio/wav"}, 415),
        (bytes((1 << 20) + 1), PACKET, 413),
    ]
    for body, headers, status in refused:
        assert client.post("/v1/features", content=body, headers=headers).status_code == status


def test_a_handle_and_a_body(client: TestClient, packet: Packets) -> None:
    url = f"{URL}&features={keep(client, packet())}"
    assert_problem(client.post(url, content=packet(), headers=PACKET), 422, "request", "body")


def test_expired_features_are_erased_without_a_request(
    settings: Settings, packet: Packets, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "_SWEEP_S", 0.01)
    with TestClient(create_app(settings, Polyglot(), clock)) as client:
        body = packet()
        keep(client, body)
        assert f"esrt_features_bytes {float(len(body))}" in client.get("/metrics").text
        clock.now += 300
        wait_until_ready(client)
        for _ in range(200):
            if "esrt_features_bytes 0.0" in client.get("/metrics").text:
                return
    raise AssertionError("it is still there")


def test_erasing_overwrites(clock: Clock) -> None:
    store = PacketStore(Settings(packet_ttl_s=10), clock)
    first, second = store.put(b"first", "a"), store.put(b"second", "a")
    memory = [stored.packet for stored in store._packets.values()]
    copy = store.get(first, "a")
    store.delete(first, "a")
    clock.now += 10
    store.sweep()
    assert (len(store), store.size) == (0, 0)
    assert [bytes(packet) for packet in memory] == [bytes(5), bytes(6)]
    assert copy == b"first", "a decoding under way may finish"
    with pytest.raises(UnknownFeatures):
        store.get(second, "a")
    store.put(b"third", "a")
    memory = [stored.packet for stored in store._packets.values()]
    store.clear()
    assert bytes(memory[0]) == bytes(5)


def test_memory_is_bounded(clock: Clock) -> None:
    store = PacketStore(Settings(packet_ttl_s=10, packet_store_bytes=100), clock)
    handles = [store.put(bytes(25), key) for key in ("a", "b", "c")]
    with pytest.raises(TooManyRequests):
        store.put(b"x", "a")
    store.put(bytes(20), "d")
    with pytest.raises(Overloaded):
        store.put(bytes(6), "e")
    with pytest.raises(Overloaded):
        store.put(bytes(6), None)
    store.delete(handles[0], "a")
    store.put(bytes(25), "a")
    assert store.size == 95
    clock.now += 10
    store.put(bytes(25), "a")
    assert store.size == 25


def test_kept_features_with_the_real_decoder(settings: Settings, packet: Packets) -> None:
    with TestClient(create_app(settings)) as client:
        wait_until_ready(client)
        handle = keep(client, packet(1))
        for src, tgt, pair in (("eng", "deu", SENTENCES[1]), ("deu", "eng", SENTENCES[1][::-1])):
            answer = client.post(f"/v1/translate?src={src}&tgt={tgt}&features={handle}").json()
            assert (answer["transcript"], answer["translation"]) == pair
