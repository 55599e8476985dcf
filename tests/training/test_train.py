"""Short training runs: losses fall, killed runs resume, checkpoints load."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer, Gemma3ForCausalLM

from esrt.bundled import REPOSITORY
from esrt.checkpoint import open_checkpoint
from esrt.cli import exit_on_error
from tests.training.helpers import first_examples, recipe, save_split
from training import train, training_run, translation
from training.corpus.build import Corpus
from training.data import Batch
from training.recipe import Recipe, Task
from training.sampling import Item
from training.training_run import TrainingRun

STEPS = 2
ASR_THEN_SRT = [{"until": 0.5, "tasks": {"asr": 1}}, {"until": 1, "tasks": {"srt": 1}}]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save and validate after every step, and validate quickly."""
    monkeypatch.setattr(training_run, "SAVE_EVERY_SECONDS", 0)
    monkeypatch.setattr(translation, "MAX_NEW_TOKENS", 4)


def batch_of(run: TrainingRun, start: int = 0, seconds: int = 1) -> Batch:
    """Make a batch of four examples, their noise repeated or cut to the given length."""
    items = [
        Item(example, "eng" if example.language != "eng" else "deu", Task.SRT)
        for example in run.corpus.examples[start : start + 4]
    ]
    audio = [np.resize(run.corpus.speech(item.example), seconds * 16_000) for item in items]
    return run.model.collator(items, audio)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def started(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """Make a run that was saved after some steps."""
    run = TrainingRun(recipe(), corpus, tmp_path_factory.mktemp("run"))
    for step in range(STEPS):
        run.train_step(batch_of(run, 4 * step))
    run.seconds = 12.5
    run.save()
    return run


def test_a_run_resumes_from_its_save(started: TrainingRun, corpus: Corpus) -> None:
    resumed = TrainingRun(recipe(), corpus, started.folder)
    assert (resumed.step, resumed.seconds) == (STEPS, 12.5)
    expected = started.model.state_dict()
    assert all(torch.equal(expected[k], v) for k, v in resumed.model.state_dict().items())
    # The state includes the optimizer's: the next step is the same in both.
    losses = [run.train_step(batch_of(run, 8)) for run in (started, resumed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert started.step == resumed.step == STEPS + 1
    expected = started.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)


def test_a_fresh_folder_starts_from_the_seed(corpus: Corpus, tmp_path: Path) -> None:
    one, again = (TrainingRun(recipe(), corpus, tmp_path / name) for name in "ab")
    other = TrainingRun(recipe(seed=18), corpus, tmp_path / "c")
    weights = [run.model.edge.q_former.query for run in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert (one.step, one.seconds, one.progress) == (0, 0.0, 0.0)


def test_losses_fall_on_a_repeated_batch(corpus: Corpus, tmp_path: Path) -> None:
    run = TrainingRun(recipe(learning_rate=1e-2, steps=200), corpus, tmp_path)
    batch = batch_of(run, seconds=4)  # long enough for the CTC targets
    losses = [run.train_step(batch) for _ in range(30)]
    assert losses[-1]["text"] < 0.5 * losses[0]["text"]
    assert losses[-1]["letters"] < 0.8 * losses[0]["letters"]
    assert losses[-1]["pieces"] < 0.8 * losses[0]["pieces"]
    assert np.isfinite([list(step.values()) for step in losses]).all()


def test_the_learning_rate_rises_and_falls(corpus: Corpus, tmp_path: Path) -> None:
    run = TrainingRun(recipe(steps=8, warmup_steps=4, learning_rate=0.01), corpus, tmp_path)
    batch, rates = batch_of(run), []
    for _ in range(8):
        run.train_step(batch)
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.0025)
    assert max(rates) == rates[3] < 0.01
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 0.1 * rates[3]


def test_the_checkpoint_is_the_trained_model(started: TrainingRun, corpus: Corpus) -> None:
    started.write_checkpoint()
    checkpoint = open_checkpoint(started.folder / "checkpoint")
    assert checkpoint.config == started.model.config
    expected, found = started.model.edge.state_dict(), checkpoint.edge_model().state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-6)  # stored as float16
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=torch.float32)
    for name, tensor in started.model.decoder.state_dict().items():
        torch.testing.assert_close(decoder.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    assert len(tokenizer) == decoder.config.vocab_size == 400
    text = corpus.examples[0].texts["kor"]
    assert tokenizer(text).input_ids == started.model.tokenizer(text).input_ids


@pytest.mark.usefixtures("quick")
def test_stages_follow_one_another(corpus: Corpus, tmp_path: Path) -> None:
    """Each row of the log names the tasks of its stage."""
    settings = recipe(steps=4, stages=ASR_THEN_SRT, letter_ctc=0)
    TrainingRun(settings, corpus, tmp_path).run(first_examples(corpus, 2))
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert [row["tasks"] for row in found] == ["asr 1"] * 2 + ["srt 1"] * 2
    for row in found:
        assert {"text", "pieces", "rate", "seconds"} <= row.keys()
        assert 0 <= row["exact"] <= 100
        assert 0 <= row["transcript_exact"] <= 100
    open_checkpoint(tmp_path / "checkpoint").edge_model()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", [2, 3])
def test_the_data_stream_takes_any_seed(corpus: Corpus, tmp_path: Path, seed: int) -> None:
    TrainingRun(recipe(steps=1, seed=seed), corpus, tmp_path).run(first_examples(corpus, 1))
    assert [row["step"] for row in rows(tmp_path)] == [1]


@pytest.mark.usefixtures("quick")
def test_a_budget_of_minutes_ends_the_run(corpus: Corpus, tmp_path: Path) -> None:
    settings = recipe(minutes=0.005)
    TrainingRun(settings, corpus, tmp_path).run(first_examples(corpus, 1))
    finished = TrainingRun(settings, corpus, tmp_path)
    assert finished.progress >= 1
    assert finished.seconds >= 0.3
    assert finished.step == rows(tmp_path)[-1]["step"] >= 1
    # A finished run only writes the checkpoint again.
    (tmp_path / "checkpoint" / "config.json").unlink()
    finished.run(first_examples(corpus, 1))
    assert finished.step == rows(tmp_path)[-1]["step"]
    open_checkpoint(tmp_path / "checkpoint")


# The command, in separate processes.


@pytest.fixture
def command(corpus: Corpus, tmp_path: Path) -> list[str]:
    """Make the command that trains the small model for four steps."""
    save_split(corpus, tmp_path / "corpus", "train")
    save_split(first_examples(corpus, 2), tmp_path / "corpus", "validation")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain(recipe(steps=4, stages=ASR_THEN_SRT))), "utf-8")
    options = ["--out", tmp_path / "out", "--corpus", tmp_path / "corpus", "--threads", 1]
    return [sys.executable, "-m", "tests.training.run_train", *map(str, [path, *options])]


def plain(settings: Recipe) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude_none=True)


def start(command: list[str], log: Path, **environment: object) -> "subprocess.Popen[bytes]":
    """Start a CPU-only process with a log file; a pipe would wait for its data loader too."""
    own = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    own |= {name: str(value) for name, value in environment.items()}
    with log.open("wb") as file:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | own, stdout=file, stderr=file
        )


def ended(process: "subprocess.Popen[bytes]") -> int:
    """Wait for the exit status; kill the process if it hangs."""
    try:
        return process.wait(280)
    finally:
        process.kill()


def test_the_same_command_resumes_a_killed_run(command: list[str], tmp_path: Path) -> None:
    log, out = tmp_path / "output", tmp_path / "out"
    assert ended(start(command, log, KILL_AT=2)) == -signal.SIGKILL, log.read_text()
    assert [row["step"] for row in rows(out)] == [1]
    assert not (out / "checkpoint").exists()
    assert ended(start(command, log)) == 0, log.read_text()
    assert [row["step"] for row in rows(out)] == [1, 2, 3, 4]
    assert [row["tasks"] for row in rows(out)] == ["asr 1"] * 2 + ["srt 1"] * 2
    seconds = [row["seconds"] for row in rows(out)]
    assert seconds == sorted(seconds)
    open_checkpoint(out / "checkpoint").edge_model()


def test_two_processes_train_one_model(command: list[str], tmp_path: Path) -> None:
    """Processes with the environment of `accelerate launch`, over the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    group |= {"LOCAL_WORLD_SIZE": 2, "GLOO_SOCKET_IFNAME": "lo"}
    logs = [tmp_path / f"output{rank}" for rank in range(2)]
    processes = [
        start(command, log, RANK=rank, LOCAL_RANK=rank, **group) for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(280) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
    out = tmp_path / "out"
    assert [row["step"] for row in rows(out)] == [1, 2, 3, 4]
    assert {path.name for path in out.iterdir()} == {
        "checkpoint",
        "log.jsonl",
        "state.pt",
        "training.png",
    }
    found = open_checkpoint(out / "checkpoint").edge_model().state_dict()
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["step"] == 4
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, state["model"][f"edge.{name}"], rtol=1e-3, atol=1e-6)


def test_a_wrong_recipe_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.yaml"
    with pytest.raises(SystemExit) as ended, exit_on_error():
        train.main(path, tmp_path / "out", tmp_path / "corpus", torch.get_num_threads())
    assert ended.value.code == 2
    assert capfd.readouterr().err.startswith(f"error: {path} cannot be read: No such file")
    assert not (tmp_path / "out").exists()
