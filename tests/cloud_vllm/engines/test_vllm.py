"""The real service: a gateway process with vLLM, on the tiny checkpoint, over a socket."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest

from cloud_vllm.process import GatewayProcess, start_gateway
from esrt.checkpoint import Checkpoint
from tests.cloud_vllm.helpers import (
    EVENTS,
    MAX_NEW_TOKENS,
    PACKET,
    URL,
    Packets,
    Reference,
    Scored,
    assert_stream_adds_up,
    parse_events,
    without_times,
)
from tests.tiny_checkpoint import SENTENCES, TINY

pytestmark = pytest.mark.vllm

STOP_S = 40.0
SETTINGS = {
    "ESRT_MAX_NEW_TOKENS": str(MAX_NEW_TOKENS),
    "ESRT_PROBE_INTERVAL_S": "2",
    # An engine that shares two cores with a whole test suite may be slow.
    "ESRT_PROBE_TIMEOUT_S": "10",
    "ESRT_DEADLINE_S": "240",
}


@dataclass
class Service:
    gateway: GatewayProcess
    client: httpx.Client
    was_alive_while_loading: bool

    @property
    def log(self) -> str:
        return self.gateway.log.read_text()


@pytest.fixture(scope="module")
def service(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("log") / "gateway.log"
    arguments = "--engine", "vllm", "--checkpoint", str(checkpoint.folder)
    family: list[psutil.Process] = []
    try:
        with (
            start_gateway(*arguments, log=log, env={**os.environ, **SETTINGS}) as gateway,
            httpx.Client(base_url=gateway.address, timeout=240) as client,
        ):
            alive = client.get("/healthz").status_code == 200
            first = client.get("/readyz").status_code
            gateway.wait_until_ready()
            family = psutil.Process(gateway.process.pid).children(recursive=True)
            yield Service(gateway, client, alive and first == 503)
    finally:
        for child in _living(family):
            child.kill()


def test_every_line_of_a_start_is_json_and_the_last_says_ready(
    service: Service, checkpoint: Checkpoint
) -> None:
    records = _records(service.log)
    loading, *_, ready = [record for record in records if record["logger"] == "cloud_vllm"]
    address = service.gateway.address
    assert loading["message"] == f"Loading {checkpoint.folder} with vLLM. Listening on {address}."
    expected = rf"Ready after \d+ s: {checkpoint.config.name}, 2 languages, {address}\. Try: "
    assert re.match(expected, ready["message"])
    assert ready["message"].endswith(f"--from eng --to deu --server {address}")
    # Probes of readiness, which fail while the engine loads, are no lines.
    assert not [record for record in records if record.get("route") == "/readyz"]
    assert not [record for record in records if record["level"] in ("error", "critical")]
    assert not re.search("Triton|NUMA|_pytree", service.log)


@pytest.mark.parametrize("split", ["qformer", "adapter"])
@pytest.mark.parametrize("tokens", [1, 2, 13, TINY.max_tokens])
def test_equals_transformers(
    service: Service, packet: Packets, reference: Reference, tokens: int, split: str
) -> None:
    for number, (source, target) in [(5, ("eng", "deu")), (4, ("deu", "eng"))]:
        body = packet(number, tokens, split=split)
        answer = _translate(service, body, source, target)
        pair = SENTENCES[number] if source == "eng" else SENTENCES[number][::-1]
        assert (answer["transcript"], answer["translation"]) == pair
        text = f"<|{source}|><|{target}|>".join(pair)
        assert reference(body, source, target) == text


def test_equals_transformers_on_unseen_features(
    service: Service, packet: Packets, scored: Scored
) -> None:
    # So many that several ends occur, whatever processor the tiny model was trained on.
    bodies = [packet(100 + seed, 1 + 7 * (seed % 8)) for seed in range(32)]
    # Both directions at once: each is held to its own separator.
    requests = [(body, *pair) for body in bodies for pair in (("eng", "deu"), ("deu", "eng"))]
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda request: _translate(service, *request), requests))
    for request, answer in zip(requests, answers, strict=True):
        text, confidence, finish = scored(*request)
        transcript, separator, translation = text.partition(f"<|{request[1]}|><|{request[2]}|>")
        assert (answer["transcript"], answer["translation"]) == (transcript, translation)
        assert answer["confidence"].pop("threshold") is None  # the model has no evaluation
        assert answer["confidence"] == pytest.approx(confidence, abs=1e-3)
        assert "<|" not in transcript + translation
        assert answer["finish"] == finish
        assert separator or finish != "stop"
    assert {"stop"} < {answer["finish"] for answer in answers}


def test_memory_does_not_grow_with_the_lengths_of_batches(
    service: Service, packet: Packets
) -> None:
    children = psutil.Process(service.gateway.process.pid).children(recursive=True)
    engine = max(children, key=lambda child: child.memory_info().rss)

    def memory_after(seeds: range) -> int:
        bodies = [packet(seed, 1 + seed % TINY.max_tokens) for seed in seeds]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda body: _translate(service, body, "eng", "deu"), bodies))
        return int(engine.memory_info().rss)

    before = memory_after(range(1000, 1150))
    # A stray shape takes a few megabytes; with oneDNN's default cache it is tens.
    assert memory_after(range(1150, 1300)) - before < 8e6


def test_concurrent_answers_do_not_mix(service: Service, packet: Packets) -> None:
    numbers = list(range(len(SENTENCES))) * 3
    bodies = [packet(number, 1 + place * 2) for place, number in enumerate(numbers)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: _translate(service, body, "eng", "deu"), bodies))
    for number, answer in zip(numbers, answers, strict=True):
        assert (answer["transcript"], answer["translation"]) == SENTENCES[number]


def test_streams_the_same_answer(service: Service, packet: Packets) -> None:
    for number in (4, 5, 6):
        body = packet(number)
        events, times = [], []
        with service.client.stream("POST", URL, content=body, headers=EVENTS) as response:
            text = ""
            for chunk in response.iter_text():
                times.append(time.monotonic())
                text += chunk
            events = parse_events(text)
        done = assert_stream_adds_up(events)
        assert without_times(done) == without_times(_translate(service, body, "eng", "deu"))
        assert len(set(times)) > 2, "the answer came at once"


def test_continues_after_disconnects(service: Service, packet: Packets) -> None:
    for headers in (PACKET, EVENTS):
        for _ in range(5):
            with pytest.raises(httpx.TimeoutException):
                service.client.post(
                    URL, content=packet(5), headers=headers, timeout=httpx.Timeout(9, read=0.004)
                )
    answer = _translate(service, packet(2), "eng", "deu")
    assert (answer["transcript"], answer["translation"]) == SENTENCES[2]
    assert "Traceback" not in service.log


def test_is_alive_but_not_ready_while_loading(service: Service) -> None:
    assert service.was_alive_while_loading


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_an_engine_process_that_dies_or_hangs_under_load(
    service: Service, packet: Packets, sent: signal.Signals
) -> None:
    numbers = list(range(len(SENTENCES))) * 2
    rebuilds, process = _rebuilds(service), _engine_process(service)
    family = [process, *process.children(recursive=True)]
    with ThreadPoolExecutor(len(numbers)) as pool:
        requests = [pool.submit(_translate, service, packet(n), "eng", "deu") for n in numbers]
        time.sleep(0.02)
        process.send_signal(sent)
        end = time.monotonic() + STOP_S
        while "rebuilt" not in service.client.get("/readyz").text:
            assert time.monotonic() < end, service.log[-3000:]
            time.sleep(0.2)
        answers = [request.result() for request in requests]
    for number, answer in zip(numbers, answers, strict=True):
        assert (answer["transcript"], answer["translation"]) == SENTENCES[number]
    assert _rebuilds(service) == rebuilds + 1
    assert service.client.get("/readyz").status_code == 200
    assert _living(family) == []


def test_sigterm_finishes_running_requests_and_leaves_no_process(
    service: Service, packet: Packets
) -> None:
    family = psutil.Process(service.gateway.process.pid).children(recursive=True)
    assert family, "vLLM runs in processes of its own"
    earlier = len(service.log)
    process = _engine_process(service)
    with ThreadPoolExecutor(1) as pool:
        # So that the answer is surely under way.
        process.send_signal(signal.SIGSTOP)
        request = pool.submit(_translate, service, packet(2), "eng", "deu")
        time.sleep(0.5)
        service.gateway.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(httpx.ConnectError):
            httpx.get(service.client.base_url)
        process.send_signal(signal.SIGCONT)
        assert request.result()["translation"] == SENTENCES[2][1]
    assert service.gateway.process.wait(STOP_S) == 0
    _, alive = psutil.wait_procs(_living(family), timeout=5)
    assert _living(alive) == []
    assert [record["message"] for record in _records(service.log)].count("Stopping.") == 1
    log = service.log[earlier:]
    assert "Traceback" not in log
    # The processes that were killed could not remove theirs.
    assert "leaked shared_memory" not in log


def _translate(service: Service, body: bytes, source: str, target: str) -> dict:  # type: ignore[type-arg]
    response = service.client.post(
        f"/v1/translate?src={source}&tgt={target}", content=body, headers=PACKET
    )
    assert response.status_code == 200, response.text
    answer: dict = response.json()  # type: ignore[type-arg]
    return answer


def _records(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines()]


def _engine_process(service: Service) -> psutil.Process:
    family = psutil.Process(service.gateway.process.pid).children(recursive=True)
    (core,) = [
        process
        for process in family
        if "EngineCore" in " ".join([process.name(), *process.cmdline()])
    ]
    return core


def _rebuilds(service: Service) -> float:
    text = service.client.get("/metrics").text
    return float(re.search(r"^esrt_engine_rebuilds (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]


def _living(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Processes that run; an ended orphan may stay a zombie for a while."""
    return [
        process
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]
