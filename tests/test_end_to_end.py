"""Speech to translation with all real parts: exported encoder, packet, gateway, vLLM."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
import soxr
import torch
from transformers import AutoTokenizer, Gemma3ForCausalLM

from cloud_vllm.process import GatewayProcess, start_gateway
from edge_runtime.answer import Done
from edge_runtime.artifact import Artifact, open_artifact
from edge_runtime.backends import Backend
from edge_runtime.client import Client
from edge_runtime.encoder import encode_speech
from edge_runtime.speech import read_speech
from esrt import features
from esrt.bundled import CHECKPOINT, REPOSITORY, SAMPLES
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.languages import direction
from esrt.model import generate_greedy
from esrt.prompt import separator, split_target
from esrt.wire import Codec, CodecTables
from export import parity
from tests.golden.front_end_vectors import VECTORS

pytestmark = pytest.mark.vllm

CLIPS: list[dict[str, Any]] = json.loads((SAMPLES / "index.json").read_text("utf-8"))


def target_of(clip: dict[str, Any]) -> str:
    """A target language for a clip; the clips together cover every language."""
    others = sorted(set(clip["texts"]) - {clip["language"]})
    place = [row["texts"] for row in CLIPS].index(clip["texts"])
    return others[place % len(others)]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The fp32 artifact, exported by the user's command."""
    out = tmp_path_factory.mktemp("artifact") / "fp32"
    command = [sys.executable, "export/to_onnx.py", "--precision", "fp32", "--out", str(out)]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return open_artifact(out)


@pytest.fixture(scope="module")
def backend(artifact: Artifact) -> Backend:
    return artifact.backend()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway process with the real engine on the bundled model."""
    log = tmp_path_factory.mktemp("gateway") / "log"
    with start_gateway("--engine", "vllm", log=log) as gateway:
        gateway.wait_until_ready()
        yield gateway


@pytest.fixture(scope="module")
def server(gateway: GatewayProcess) -> str:
    """The gateway's address."""
    return gateway.address


@pytest.fixture(scope="module")
def unsplit(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Transcript and translation of each clip by the unsplit torch model, greedily, in fp32."""
    edge = checkpoint.edge_model()
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    answers = []
    for clip in CLIPS:
        pair = direction(clip["language"], target_of(clip))
        audio = parity.read_audio(clip["file"])
        mel = features.log_mel_features(
            audio, mel_bins=128, frame_multiple=checkpoint.config.frame_multiple
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
    speech = read_speech(SAMPLES / clip["file"], backend.manifest.front_end)
    packet = encode_speech(speech, backend, codec, codec_tables).packet
    with Client(server) as client:
        events = list(client.stream(packet, *direction(clip["language"], target_of(clip))))
    done = events.pop()
    assert isinstance(done, Done)
    streamed = {"transcript": "", "translation": ""}
    for event in events:
        streamed[event.part] += event.text
    assert streamed == {"transcript": done.transcript, "translation": done.translation}
    return done


def test_features_are_those_of_the_golden_vectors(backend: Backend) -> None:
    for vector in VECTORS:
        features = backend.encode(vector.log_mel)
        np.testing.assert_allclose(features, vector.features, rtol=0, atol=1e-3)


def test_split_equals_unsplit(
    server: str, backend: Backend, unsplit: list[tuple[str, str]]
) -> None:
    assert len(CLIPS) == 24
    found = [translate(server, backend, clip, Codec.FP16) for clip in CLIPS]
    assert [(done.transcript, done.translation) for done in found] == unsplit


@pytest.mark.parametrize("codec", [Codec.INT8, Codec.KLT])
def test_held_out_speech_comes_out_right(
    server: str, backend: Backend, artifact: Artifact, codec: Codec
) -> None:
    """Three of four exact translations, with the default codecs with and without codec tables."""
    codec_tables = artifact.codec_tables()
    right = sum(
        translate(server, backend, clip, codec, codec_tables).translation
        == clip["texts"][target_of(clip)]
        for clip in CLIPS
    )
    assert right >= 0.75 * len(CLIPS)


def test_telephone_speech_comes_out_as_well(
    server: str, backend: Backend, tmp_path: Path, unsplit: list[tuple[str, str]]
) -> None:
    """Files at 8 kHz, about which no warning is given."""
    right = expected = 0
    for clip, (_, wide) in zip(CLIPS, unsplit, strict=True):
        samples, rate = soundfile.read(SAMPLES / clip["file"], dtype="float32")
        path = tmp_path / "8k.wav"
        soundfile.write(path, soxr.resample(samples, rate, 8_000), 8_000)
        done = translate(server, backend, {**clip, "file": path}, Codec.FP16)
        right += done.translation == clip["texts"][target_of(clip)]
        expected += wide == clip["texts"][target_of(clip)]
    assert right >= expected - 2


def test_quick_robustness_run_writes_the_report(
    server: str, artifact: Artifact, tmp_path: Path
) -> None:
    out = tmp_path / "robustness.json"
    command = [sys.executable, "-m", "benchmarks.robustness", "--quick", "--json", str(out)]
    command += ["--server", server, "--artifact", str(artifact.folder)]
    command += ["--report", str(tmp_path / "plots")]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    record = json.loads(out.read_text("utf-8"))
    clean, *rows = record["rows"]
    assert clean["kept"] == clean["right"] == 2
    assert len(rows) == 4
    for row in rows:
        counts = ("kept", "corrected", "cautioned", "refused", "silent")
        assert sum(row[count] for count in counts) == 2
        assert len(row["silent_failures"]) == row["silent"]
        assert f"| {row['condition']} | {row['kept']} |" in done.stdout
    assert sum(row["kept"] for row in rows) > 0
    assert len(record["sounds"]) == 5
    assert [bar["name"] for bar in record["bars"]] == [
        *("clean_kept_pct", "silent_failures_pct", "non_speech_silent_pct")
    ]
    assert (tmp_path / "plots" / "robustness.png").read_bytes().startswith(b"\x89PNG")


def test_command_line(server: str, artifact: Artifact) -> None:
    clip = CLIPS[0]
    command = [sys.executable, "-m", "edge_runtime", "translate", str(SAMPLES / clip["file"])]
    command += ["--from", clip["language"], "--to", target_of(clip)]
    command += ["--server", server, "--artifact", str(artifact.folder), "--json"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["fingerprint"] == artifact.manifest.fingerprint
    assert answer["packet"]["codec"] == "klt"
    assert answer["packet"]["times_smaller"] > 64
    stages = ["find_speech", "log_mel", "encode", "pack", "network", "first_token", "done"]
    assert list(answer["client_ms"]) == stages
    assert answer["confidence"]["translation"] < 0
    assert all(value > 0 for value in answer["client_ms"].values())


def test_a_killed_gateway_leaves_no_process_and_no_shared_memory(gateway: GatewayProcess) -> None:
    """The last test, because it ends the gateway."""
    family = psutil.Process(gateway.process.pid).children(recursive=True)
    assert any("EngineCore" in " ".join([one.name(), *one.cmdline()]) for one in family)
    shared = re.findall(
        r"/dev/shm/\S+", "".join(Path(f"/proc/{one.pid}/maps").read_text() for one in family)
    )
    gateway.process.kill()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
    assert [name for name in shared if Path(name).exists()] == []
