"""Security headers, CORS, and the time limit of a request."""

import asyncio

import pytest
from starlette.testclient import TestClient

from cloud_vllm.api.app import create_app
from cloud_vllm.engines import GenerationChunk
from cloud_vllm.middleware import request_guard
from cloud_vllm.settings import Settings
from tests.cloud_vllm.helpers import PACKET, URL, Packets, assert_problem, call, ready_engine

END = GenerationChunk("hello<|eng|><|deu|>hallo", 3, "stop")
ORIGIN = "https://talk.example"


def test_every_answer_has_the_security_headers(settings: Settings, packet: Packets) -> None:
    with TestClient(create_app(settings, ready_engine(END))) as client:
        answers = [
            client.get("/healthz"),
            client.get("/none"),
            client.post(URL, content=packet(), headers=PACKET),
            client.post(URL, content=b"", headers=PACKET),
        ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert "strict-transport-security" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers


def test_only_allowed_origins_get_cors_headers(settings: Settings) -> None:
    preflight = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    with TestClient(create_app(settings, ready_engine(END))) as client:
        answer = client.options("/v1/translate", headers=preflight)
        assert answer.status_code == 405
        assert "access-control-allow-origin" not in answer.headers
    changed = settings.model_copy(update={"cors_origins": (ORIGIN,)})
    with TestClient(create_app(changed, ready_engine(END))) as client:
        answer = client.options("/v1/translate", headers=preflight)
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        other = client.options("/v1/translate", headers=preflight | {"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_request_beyond_all_limits_ends(
    settings: Settings, packet: Packets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_guard, "_SEND_S", 0.0)
    hanging = ready_engine(None)
    app = create_app(settings.model_copy(update={"upload_s": 0.1, "deadline_s": 60}), hanging)
    app.user_middleware[0].kwargs["settings"] = settings.model_copy(
        update={"upload_s": 0.1, "deadline_s": 0.1}
    )
    status, text, _ = asyncio.run(call(app, [packet()], headers=PACKET))
    assert (status, hanging.open) == (504, 0)
    assert b"deadline-exceeded" in text


def test_there_are_no_interactive_pages(settings: Settings) -> None:
    with TestClient(create_app(settings, ready_engine(END))) as client:
        assert_problem(client.get("/docs"), 404, "not-found")
