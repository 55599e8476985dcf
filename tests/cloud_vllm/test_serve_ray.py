"""Real Ray Serve: two replicas of the gateway with vLLM on one machine, one of them killed."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import torch
import yaml
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoTokenizer, Gemma3ForCausalLM

from edge_runtime.audio import read_audio
from esrt import wire
from esrt.bundled import CHECKPOINT, REPOSITORY
from esrt.checkpoint import open_checkpoint
from esrt.errors import RequestError
from esrt.features import log_mel_features
from esrt.languages import direction
from esrt.model import generate_greedy
from esrt.prompt import separator, split_target
from tests.cloud_vllm.helpers import PACKET
from tests.deploy.helpers import free_port, used_metrics

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.vllm

# Clips and their target languages.
TARGETS = {"eng-1": "deu", "deu-2": "fra", "fra-2": "tur"}
MAX_NEW_TOKENS = 96
START_S, RETRY_S = 240.0, 60.0
RETRIABLE = {429, 502, 503, 504}


@dataclass(frozen=True)
class Question:
    """A request with the expected transcript and translation."""

    url: str
    packet: bytes
    answer: tuple[str, str]


@dataclass
class Cluster:
    url: str
    process: psutil.Process

    def replicas(self) -> list[psutil.Process]:
        return [
            process
            for process in _family(self.process)
            if _name(process).startswith("ray::ServeReplica")
        ]

    def is_ready(self) -> bool:
        """Whether a replica answers that its engine is ready."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=10).is_success
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """Some bundled clips, with the answers of the unsplit model in transformers."""
    checkpoint = open_checkpoint(CHECKPOINT)
    edge = checkpoint.edge_model()
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    questions = []
    for clip, target in TARGETS.items():
        pair = direction(clip[:3], target)
        samples = read_audio(CHECKPOINT / "samples" / f"{clip}.flac").samples
        mel = log_mel_features(
            samples, mel_bins=128, frame_multiple=checkpoint.config.frame_multiple
        )
        with torch.inference_mode():
            sent = edge.features(torch.from_numpy(mel[None]))
            embeddings = edge.mlp(sent)
        tokens = torch.tensor([embeddings.shape[1]])
        (text,) = generate_greedy(
            decoder, tokenizer, embeddings, tokens, [separator(*pair)], MAX_NEW_TOKENS
        )
        packet = wire.encode(
            sent[0].numpy(),
            fingerprint=checkpoint.fingerprint,
            split=wire.Split.QFORMER,
            codec=wire.Codec.FP16,
            duration_ms=round(len(samples) / 16),
        )
        url = f"/v1/translate?src={clip[:3]}&tgt={target}"
        questions.append(Question(url, packet, split_target(text, *pair)))
    return questions


def test_a_replica_without_keys_is_not_opened_by_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloud_vllm.serve_ray import replica_settings

    monkeypatch.delenv("ESRT_KEY_FILE", raising=False)
    with pytest.raises(RequestError, match="Ray's proxy"):
        replica_settings({})
    assert replica_settings({"allow_anonymous": True}).key_file is None
    monkeypatch.setenv("ESRT_KEY_FILE", "keys.json")
    assert replica_settings({}).key_file == Path("keys.json")


def serve_config(folder: Path, port: int) -> Path:
    """Write deploy/serve.yaml with the settings of a small machine without a GPU."""
    config = yaml.safe_load((REPOSITORY / "deploy" / "serve.yaml").read_text("utf-8"))
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    (application,) = config["applications"]
    (deployment,) = application["deployments"]
    application["args"] = {
        "checkpoint": str(CHECKPOINT),
        "max_new_tokens": MAX_NEW_TOKENS,
        "kv_cache_bytes": 32 << 20,
        "allow_anonymous": True,
    }
    deployment["ray_actor_options"] = {"num_cpus": 1}
    deployment["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Ray cluster of this machine with two replicas, started by ``serve run``."""
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    log = folder / "log"
    # Paths of Ray's sockets have at most 107 characters.
    temporary = tempfile.mkdtemp(prefix="ray")
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION": "0.01",
        "RAY_TMPDIR": temporary,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with log.open("w") as output:
        process = psutil.Popen(
            [Path(sys.executable).with_name("serve"), "run", serve_config(folder, port)],
            cwd=REPOSITORY,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    cluster = Cluster(f"http://127.0.0.1:{port}", process)

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        return cluster.is_ready()

    try:
        _wait(is_ready, "replica")
        yield cluster
    finally:
        family = _family(process)
        process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs([process, *family], timeout=30)
        for member in alive:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def test_a_killed_replica_loses_no_request(cluster: Cluster, questions: list[Question]) -> None:
    counts: Counter[str] = Counter()
    stop = threading.Event()

    def translate(number: int) -> None:
        with httpx.Client(base_url=cluster.url, timeout=30) as client:
            while not stop.is_set():
                number = (number + 1) % len(questions)
                answer = _until_answered(client, questions[number], counts)
                texts = answer["transcript"], answer["translation"]
                counts["right" if texts == questions[number].answer else "wrong"] += 1

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(translate, number) for number in range(8)]
        try:
            _wait(lambda: len(_served_by(cluster.url)) == 2, "requests at both replicas")
            killed = cluster.replicas()[0]
            engines = [process for process in _family(killed) if "EngineCore" in _name(process)]
            assert engines, "a replica has its own engine process"
            killed.kill()
            before = counts["right"]
            _wait(lambda: counts["right"] >= before + 50, "answers after the kill")
        finally:
            stop.set()
        for client in clients:
            client.result()
    assert counts["wrong"] == 0
    assert counts["retried"] <= 200, counts
    _, alive = psutil.wait_procs(engines, timeout=30)
    assert not alive, "the engine ends with its replica"


def test_metrics_of_the_dashboard_and_the_alerts_exist(
    cluster: Cluster, questions: list[Question]
) -> None:
    with httpx.Client(base_url=cluster.url, timeout=30) as client:
        _until_answered(client, questions[0], Counter())
        page = ""
        for _ in range(50):
            page = client.get("/metrics").text
            if 'route="/v1/translate"' in page and "vllm:generation_tokens_total" in page:
                break
    names = {
        sample.name for family in text_string_to_metric_families(page) for sample in family.samples
    }
    assert used_metrics() - names == set()
    assert not [name for name in names if name.startswith("python_")]


def _until_answered(
    client: httpx.Client, question: Question, counts: Counter[str]
) -> dict[str, str]:
    end = time.monotonic() + RETRY_S
    while True:
        try:
            response = client.post(question.url, content=question.packet, headers=PACKET)
            if response.status_code == 200:
                answer: dict[str, str] = response.json()
                return answer
            # For a dead replica, Ray's proxy answers with its own 500 in plain text.
            problem = response.headers["content-type"].startswith("application/problem+json")
            assert response.status_code in RETRIABLE or not problem, response.text
            counts[f"status {response.status_code}"] += 1
        except (httpx.TransportError, json.JSONDecodeError) as error:
            counts[type(error).__name__] += 1
        counts["retried"] += 1
        assert time.monotonic() < end, counts
        time.sleep(0.1)


def _served_by(url: str) -> set[float]:
    """The start times of the replicas that have translated; each request reaches one of them."""
    starts = set()
    for _ in range(20):
        page = httpx.get(f"{url}/metrics", timeout=30).text
        if 'route="/v1/translate",status="200"' in page:
            for family in text_string_to_metric_families(page):
                if family.name == "process_start_time_seconds":
                    starts.add(family.samples[0].value)
    return starts


def _wait(condition: Callable[[], bool], event: str) -> None:
    end = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < end, f"no {event}"
        time.sleep(0.2)


def _family(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


def _name(process: psutil.Process) -> str:
    try:
        return " ".join([process.name(), *process.cmdline()])
    except psutil.NoSuchProcess:
        return ""
