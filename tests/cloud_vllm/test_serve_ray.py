"""Ray Serve for real: two replicas of the gateway with vLLM on one machine, one of them killed."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
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
from tests.deploy.helpers import dashboard_metrics

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.vllm

# Clips, and the languages they are translated into.
ASKED = {"eng-1": "deu", "deu-2": "fra", "spa-1": "eng", "fra-2": "tur", "tur-1": "spa"}
MAX_NEW_TOKENS = 96
START_S, RETRY_S = 240.0, 60.0
RETRIABLE = {429, 502, 503, 504}
STORE_BYTES = 80 << 20


@dataclass(frozen=True)
class Question:
    """A request, and the transcript and translation that are right."""

    url: str
    packet: bytes
    answer: tuple[str, str]


@dataclass
class Cluster:
    url: str
    head: psutil.Process
    log: Path

    def replicas(self) -> list[psutil.Process]:
        return [one for one in _family(self.head) if _name(one).startswith("ray::ServeReplica")]


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """Some of the bundled clips; what is right says the unsplit model, by transformers."""
    checkpoint = open_checkpoint(CHECKPOINT)
    edge = checkpoint.edge_model()
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    found = []
    for clip, target in ASKED.items():
        pair = direction(clip[:3], target)
        samples = read_audio(CHECKPOINT / "samples" / f"{clip}.flac").samples
        mel = log_mel_features(samples, frame_multiple=checkpoint.config.frame_multiple)
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
        found.append(Question(url, packet, split_target(text, *pair)))
    return found


def test_a_replica_without_keys_is_not_opened_by_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloud_vllm.serve_ray import replica_settings

    monkeypatch.delenv("ESRT_KEY_FILE", raising=False)
    with pytest.raises(RequestError, match="Ray's proxy"):
        replica_settings({})
    assert replica_settings({"allow_anonymous": True}).key_file is None
    monkeypatch.setenv("ESRT_KEY_FILE", "keys.json")
    assert replica_settings({}).key_file == Path("keys.json")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The Serve config file as it is, but for what one small machine without a GPU cannot give."""
    config = yaml.safe_load((REPOSITORY / "deploy" / "serve.yaml").read_text("utf-8"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
    folder = tmp_path_factory.mktemp("serve")
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    # Ray's sockets lie in its folder, and their paths may be no longer than 107 characters.
    temporary = tempfile.mkdtemp(prefix="ray")
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, str(folder / "serve.yaml"), temporary],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    head = psutil.Process(process.pid)
    family: list[psutil.Process] = []
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while "deployed" not in log.read_text():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.2)
        yield Cluster(url, head, log)
    finally:
        with suppress(psutil.NoSuchProcess):
            family = _family(head)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        _, alive = psutil.wait_procs(family, timeout=10)
        for one in alive:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        shutil.rmtree(temporary, ignore_errors=True)


# What `serve run` does, with a small object store and without the dashboard.
_RUN = f"""
import signal, sys
import ray, yaml
from ray import serve
from ray.serve._private.api import serve_start
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
file, temporary = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, object_store_memory={STORE_BYTES},
         _temp_dir=temporary)
config = ServeDeploySchema.model_validate(yaml.safe_load(open(file)))
try:
    serve_start(http_options=config.http_options.model_dump())
    _get_global_client().deploy_apps(config, _blocking=True)
    print("deployed", flush=True)
    signal.pause()
finally:
    serve.shutdown()
    ray.shutdown()
"""


def test_a_killed_replica_loses_no_request(cluster: Cluster, questions: list[Question]) -> None:
    first = cluster.replicas()
    assert len(first) == 2
    engines = [one for one in _family(first[0]) if "EngineCore" in _name(one)]
    assert engines, "a replica owns an engine"
    counts: Counter[str] = Counter()
    stop = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=cluster.url, timeout=30) as client:
            while not stop.is_set():
                number = (number + 1) % len(questions)
                answer = _until_answered(client, questions[number], counts)
                found = answer["transcript"], answer["translation"]
                counts["right" if found == questions[number].answer else "wrong"] += 1

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, number) for number in range(8)]
        try:
            _wait(lambda: counts["right"] >= 60, "answers")
            assert len(_served_by(cluster.url)) == 2, "both replicas get requests"
            first[0].kill()
            before = counts["right"]
            _wait(lambda: counts["right"] >= before + 200, "answers after the kill")
        finally:
            stop.set()
        for one in asked:
            one.result()
    assert counts["wrong"] == 0
    # Who was answered by the one that died was told so, and asked again.
    assert counts["retried"] <= 200, counts
    _, alive = psutil.wait_procs(engines, timeout=30)
    assert not alive, "the dead replica's engine does not outlive it"


def test_metrics_hold_all_that_the_dashboard_shows(
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
    assert dashboard_metrics() - names == set()
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
            # Ray's proxy answers for a replica that is gone with a 500 of its own, in plain text.
            own = response.headers["content-type"].startswith("application/problem+json")
            assert response.status_code in RETRIABLE or not own, response.text
            counts[f"status {response.status_code}"] += 1
        except (httpx.TransportError, json.JSONDecodeError) as error:
            counts[type(error).__name__] += 1
        counts["retried"] += 1
        assert time.monotonic() < end, counts
        time.sleep(0.1)


def _served_by(url: str) -> set[float]:
    """The start times of the replicas that have translated, by asking whichever answers."""
    starts = set()
    for _ in range(60):
        page = httpx.get(f"{url}/metrics").text
        if 'route="/v1/translate",status="200"' in page:
            for family in text_string_to_metric_families(page):
                if family.name == "process_start_time_seconds":
                    starts.add(family.samples[0].value)
    return starts


def _wait(condition, what: str) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + RETRY_S
    while not condition():
        assert time.monotonic() < end, f"no {what}"
        time.sleep(0.05)


def _family(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


def _name(process: psutil.Process) -> str:
    try:
        return " ".join([process.name(), *process.cmdline()])
    except psutil.NoSuchProcess:
        return ""
