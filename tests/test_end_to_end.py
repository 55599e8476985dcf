"""Speech to translation through everything real: exported encoder, packet, gateway, vLLM."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoTokenizer, Gemma3ForCausalLM

from edge_runtime.audio import read_audio
from edge_runtime.backends import Backend, open_backend
from edge_runtime.client import Client, Done
from edge_runtime.encoder import codec_tables_of, encode_audio
from esrt import features
from esrt.bundled import CHECKPOINT, REPOSITORY, SAMPLES
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.languages import direction
from esrt.model import generate_greedy
from esrt.prompt import separator, split_target
from esrt.wire import Codec, CodecTables

pytestmark = pytest.mark.vllm

CLIPS: list[dict[str, Any]] = json.loads((SAMPLES / "index.json").read_text("utf-8"))
READY_SECONDS = 240


def target_of(clip: dict[str, Any]) -> str:
    """A target language for a clip, so that together they cover every language."""
    others = sorted(set(clip["texts"]) - {clip["language"]})
    return others[CLIPS.index(clip) % len(others)]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 artifact, exported as a user would."""
    out = tmp_path_factory.mktemp("artifact") / "fp32"
    command = [sys.executable, "export/to_onnx.py", "--precision", "fp32", "--out", str(out)]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return out


@pytest.fixture(scope="module")
def backend(artifact: Path) -> Backend:
    return open_backend(artifact)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The gateway as its own process, with the real engine on the bundled model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("gateway") / "log"
    command = [sys.executable, "-m", "cloud_vllm", "--engine", "vllm", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + READY_SECONDS
        while not _ready(address):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.3)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def unsplit(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Transcript and translation of each clip by the unsplit torch model, greedily, in fp32."""
    edge = checkpoint.edge_model()
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    answers = []
    for clip in CLIPS:
        pair = direction(clip["language"], target_of(clip))
        audio = read_audio(SAMPLES / clip["file"])
        mel = features.log_mel_features(
            audio.samples, frame_multiple=checkpoint.config.frame_multiple
        )
        with torch.inference_mode():
            embeddings = edge(torch.from_numpy(mel[None]))
        tokens = torch.tensor([embeddings.shape[1]])
        text = generate_greedy(decoder, tokenizer, embeddings, tokens, [separator(*pair)], 96)[0]
        answers.append(split_target(text, *pair))
    return answers


def translate(
    server: str,
    backend: Backend,
    clip: dict[str, Any],
    codec: Codec,
    codec_tables: CodecTables | None = None,
) -> Done:
    audio = read_audio(SAMPLES / clip["file"])
    packet = encode_audio(audio, backend, codec, codec_tables).packet
    with Client(server) as client:
        events = list(client.stream(packet, *direction(clip["language"], target_of(clip))))
    done = events.pop()
    assert isinstance(done, Done)
    streamed = {"transcript": "", "translation": ""}
    for event in events:
        streamed[event.part] += event.text
    assert streamed == {"transcript": done.transcript, "translation": done.translation}
    return done


def test_split_equals_unsplit(
    server: str, backend: Backend, unsplit: list[tuple[str, str]]
) -> None:
    assert len(CLIPS) == 24
    found = [translate(server, backend, clip, Codec.FP16) for clip in CLIPS]
    assert [(done.transcript, done.translation) for done in found] == unsplit


@pytest.mark.parametrize("codec", [Codec.INT8, Codec.KLT])
def test_held_out_speech_comes_out_right(
    server: str, backend: Backend, artifact: Path, codec: Codec
) -> None:
    """The bundled model's promise, on what is sent by default, with statistics and without."""
    codec_tables = codec_tables_of(artifact, backend.manifest)
    right = sum(
        translate(server, backend, clip, codec, codec_tables).translation
        == clip["texts"][target_of(clip)]
        for clip in CLIPS
    )
    assert right >= 0.75 * len(CLIPS)


def test_command_line(server: str, artifact: Path) -> None:
    clip = CLIPS[0]
    command = [sys.executable, "-m", "edge_runtime", "translate", str(SAMPLES / clip["file"])]
    command += ["--from", clip["language"], "--to", target_of(clip)]
    command += ["--server", server, "--artifact", str(artifact), "--json"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert (
        answer["fingerprint"] == json.loads((artifact / "manifest.json").read_text())["fingerprint"]
    )
    assert answer["packet"]["codec"] == "klt"
    assert answer["packet"]["times_smaller"] > 64
    assert list(answer["ms"]) == ["log_mel", "encode", "pack", "network", "first_token", "done"]
    assert all(value > 0 for value in answer["ms"].values())


def test_demo_ends_with_the_figures() -> None:
    clip = str(SAMPLES / CLIPS[1]["file"])
    command = [sys.executable, "demo.py", clip, "--from", CLIPS[1]["language"], "--to", "eng"]
    done = subprocess.run(
        [*command, "--engine", "transformers"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    for word in ("transcript:", "translation:", "times smaller", "log-mel", "first token"):
        assert word in done.stdout
