"""The gateway's answers, with the reference engine on the tiny checkpoint."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cloud_vllm.api.app import create_app
from cloud_vllm.settings import Settings
from esrt import wire
from esrt.checkpoint import Checkpoint
from esrt.errors import CheckpointError
from tests.cloud_vllm.helpers import (
    EVENTS,
    PACKET,
    URL,
    Packets,
    Reference,
    Scored,
    assert_stream_adds_up,
    parse_events,
    wait_until_ready,
    without_times,
)
from tests.tiny_checkpoint import SENTENCES, TINY


@pytest.mark.parametrize("split", ["qformer", "adapter"])
@pytest.mark.parametrize("codec", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("sentence", range(len(SENTENCES)))
def test_translates(
    client: TestClient,
    packet: Packets,
    checkpoint: Checkpoint,
    sentence: int,
    split: str,
    codec: str,
) -> None:
    tokens = 1 + 7 * sentence
    body = packet(sentence, tokens, split=split, codec=codec)
    response = client.post(URL, content=body, headers=PACKET)
    assert response.status_code == 200
    answer = response.json()
    assert (answer["transcript"], answer["translation"]) == SENTENCES[sentence]
    assert (answer["src"], answer["tgt"], answer["finish"]) == ("eng", "deu", "stop")
    assert (answer["model"], answer["fingerprint"]) == (TINY.name, checkpoint.fingerprint)
    assert answer["tokens"]["features"] == tokens
    times = answer["timings_ms"]
    assert 0 < times["decode"] < times["first_token"] < times["total"]
    assert (times["project"] > 0) == (split == "qformer")


def test_translates_in_the_other_direction(client: TestClient, packet: Packets) -> None:
    answer = client.post("/v1/translate?src=deu&tgt=eng", content=packet(1), headers=PACKET).json()
    assert (answer["transcript"], answer["translation"]) == SENTENCES[1][::-1]


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_reference_on_unseen_features(
    client: TestClient, packet: Packets, scored: Scored, seed: int
) -> None:
    body = packet(100 + seed, 3 + 9 * seed)
    answer = client.post(URL, content=body, headers=PACKET).json()
    text, confidence, finish = scored(body, "eng", "deu")
    expected = text.partition("<|eng|><|deu|>")
    assert (answer["transcript"], answer["translation"]) == (expected[0], expected[2])
    assert answer["confidence"].pop("threshold") is None  # the model has no evaluation
    assert answer["confidence"] == pytest.approx(confidence, abs=1e-3)
    assert answer["finish"] == finish


@pytest.mark.parametrize("sentence", range(len(SENTENCES)))
def test_stream_equals_json(client: TestClient, packet: Packets, sentence: int) -> None:
    body = packet(sentence)
    response = client.post(URL, content=body, headers=EVENTS)
    assert response.headers["content-type"].startswith("text/event-stream")
    done = assert_stream_adds_up(parse_events(response.text))
    answer = client.post(URL, content=body, headers=PACKET).json()
    assert without_times(done) == without_times(answer)
    assert set(done) == set(answer)


def test_an_answer_cut_at_its_maximum_length(
    settings: Settings, packet: Packets, reference: Reference
) -> None:
    body = packet(6)
    with TestClient(create_app(settings.model_copy(update={"max_new_tokens": 3}))) as client:
        wait_until_ready(client)
        answer = client.post(URL, content=body, headers=PACKET).json()
    assert (answer["finish"], answer["tokens"]["generated"]) == ("length", 3)
    assert reference(body, "eng", "deu").startswith(answer["transcript"])
    assert answer["translation"] == ""


def test_models_describes_the_checkpoint(client: TestClient, checkpoint: Checkpoint) -> None:
    (model,) = client.get("/v1/models").json()["models"]
    assert model["id"] == TINY.name
    assert model["fingerprint"] == checkpoint.fingerprint
    assert model["splits"] == {"qformer": 24, "adapter": 64}
    assert (model["max_tokens"], model["max_seconds"]) == (TINY.max_tokens, TINY.max_seconds)
    assert model["codecs"] == ["fp16", "int8", "int4"]
    assert model["max_packet_bytes"] == wire.MAX_PACKET_BYTES
    assert [language["code"] for language in model["languages"]] == list(TINY.languages)


def test_health_and_readiness(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_openapi_describes_packets_events_and_problems(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/translate"]["post"]
    assert list(operation["requestBody"]["content"]) == [wire.MEDIA_TYPE]
    assert set(operation["responses"]["200"]["content"]) == {
        "application/json",
        "text/event-stream",
    }
    for status in ("400", "408", "409", "413", "415", "422", "503", "504"):
        assert list(operation["responses"][status]["content"]) == ["application/problem+json"]
    assert "Problem" in document["components"]["schemas"]
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_a_missing_checkpoint_is_reported_at_creation(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No checkpoint in"):
        create_app(Settings(checkpoint=tmp_path / "none"))
