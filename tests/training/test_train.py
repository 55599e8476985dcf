"""Short training runs: they learn, can be killed and continued, and what they write loads."""

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
from tests.training.helpers import few, keep, recipe
from training import evaluate, train
from training.corpus.build import Corpus
from training.data import Batch
from training.recipe import Recipe, Task
from training.sampling import Item
from training.train import Run

STEPS = 2
ASR_THEN_SRT = [{"until": 0.5, "tasks": {"asr": 1}}, {"until": 1, "tasks": {"srt": 1}}]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save and validate after every step, and validate quickly."""
    monkeypatch.setattr(train, "SAVE_EVERY_SECONDS", 0)
    monkeypatch.setattr(evaluate, "MAX_NEW_TOKENS", 4)


def batch_of(run: Run, start: int = 0, seconds: int = 1) -> Batch:
    """Four examples of the run's corpus, their noise repeated or cut to so many seconds."""
    items = [
        Item(example, "eng" if example.language != "eng" else "deu", Task.SRT)
        for example in run.corpus.examples[start : start + 4]
    ]
    audio = [np.resize(run.corpus.speech(item.example), seconds * 16_000) for item in items]
    return run.learner.collator(items, audio)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def started(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was saved after some steps."""
    run = Run(recipe(), corpus, tmp_path_factory.mktemp("run"))
    for step in range(STEPS):
        run.train_step(batch_of(run, 4 * step))
    run.seconds = 12.5
    run.save()
    return run


def test_a_run_continues_where_it_was_saved(started: Run, corpus: Corpus) -> None:
    resumed = Run(recipe(), corpus, started.folder)
    assert (resumed.step, resumed.seconds) == (STEPS, 12.5)
    expected = started.learner.state_dict()
    assert all(torch.equal(expected[k], v) for k, v in resumed.learner.state_dict().items())
    # The optimizer's memory is part of the state: the next step is the same in both.
    losses = [run.train_step(batch_of(run, 8)) for run in (started, resumed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert started.step == resumed.step == STEPS + 1
    expected = started.learner.state_dict()
    for name, tensor in resumed.learner.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)


def test_a_save_that_broke_off_does_no_harm(started: Run, corpus: Corpus) -> None:
    (started.folder / "state.tmp").write_bytes(b"half")
    assert Run(recipe(), corpus, started.folder).step == STEPS


def test_a_fresh_folder_starts_from_the_seed(corpus: Corpus, tmp_path: Path) -> None:
    one, again = (Run(recipe(), corpus, tmp_path / name) for name in "ab")
    other = Run(recipe(seed=18), corpus, tmp_path / "c")
    weights = [run.learner.edge.q_former.query for run in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert (one.step, one.seconds, one.done) == (0, 0.0, 0.0)


def test_it_learns_what_it_sees(corpus: Corpus, tmp_path: Path) -> None:
    run = Run(recipe(learning_rate=1e-2, steps=200), corpus, tmp_path)
    batch = batch_of(run, seconds=5)  # long enough for CTC to spell what is said
    losses = [run.train_step(batch) for _ in range(50)]
    assert losses[-1]["text"] < 0.5 * losses[0]["text"]
    assert losses[-1]["letters"] < 0.8 * losses[0]["letters"]
    assert losses[-1]["pieces"] < 0.8 * losses[0]["pieces"]
    assert np.isfinite([list(step.values()) for step in losses]).all()


def test_the_learning_rate_rises_and_falls(corpus: Corpus, tmp_path: Path) -> None:
    run = Run(recipe(steps=8, warmup_steps=4, learning_rate=0.01), corpus, tmp_path)
    batch, rates = batch_of(run), []
    for _ in range(8):
        run.train_step(batch)
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.0025)
    assert max(rates) == rates[3] < 0.01
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 0.1 * rates[3]


def test_the_checkpoint_is_the_trained_model(started: Run, corpus: Corpus) -> None:
    started.export()
    checkpoint = open_checkpoint(started.folder / "checkpoint")
    assert checkpoint.config == started.learner.config
    expected, found = started.learner.edge.state_dict(), checkpoint.edge_model().state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-6)  # stored as float16
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=torch.float32)
    for name, tensor in started.learner.decoder.state_dict().items():
        torch.testing.assert_close(decoder.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    assert len(tokenizer) == decoder.config.vocab_size == 400
    text = corpus.examples[0].texts["kor"]
    assert tokenizer(text).input_ids == started.learner.tokenizer(text).input_ids


@pytest.mark.usefixtures("quick")
def test_stages_follow_one_another(corpus: Corpus, tmp_path: Path) -> None:
    """Every process of every stage needs a seed that is one; and each log row its stage."""
    settings = recipe(steps=6, stages=ASR_THEN_SRT, letter_ctc=0)
    Run(settings, corpus, tmp_path).run(few(corpus, 2))
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row["tasks"] for row in found] == ["asr 1"] * 3 + ["srt 1"] * 3
    for row in found:
        assert {"text", "pieces", "rate", "seconds"} <= row.keys()
        assert 0 <= row["exact"] <= 100
        assert 0 <= row["transcript_exact"] <= 100
    open_checkpoint(tmp_path / "checkpoint").edge_model()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", [2, 3])
def test_any_seed_will_do(corpus: Corpus, tmp_path: Path, seed: int) -> None:
    Run(recipe(steps=1, seed=seed), corpus, tmp_path).run(few(corpus, 1))
    assert [row["step"] for row in rows(tmp_path)] == [1]


@pytest.mark.usefixtures("quick")
def test_a_budget_of_minutes_ends_the_run(corpus: Corpus, tmp_path: Path) -> None:
    settings = recipe(minutes=0.005)
    Run(settings, corpus, tmp_path).run(few(corpus, 1))
    finished = Run(settings, corpus, tmp_path)
    assert finished.done >= 1
    assert finished.seconds >= 0.3
    assert finished.step == rows(tmp_path)[-1]["step"] >= 1
    # Started again, it has nothing left to do but to write the checkpoint.
    (tmp_path / "checkpoint" / "config.json").unlink()
    finished.run(few(corpus, 1))
    assert finished.step == rows(tmp_path)[-1]["step"]
    open_checkpoint(tmp_path / "checkpoint")


# The command, in processes of its own.


@pytest.fixture
def command(corpus: Corpus, tmp_path: Path) -> list[str]:
    """Train the small model for six steps."""
    keep(corpus, tmp_path / "corpus", "train")
    keep(few(corpus, 2), tmp_path / "corpus", "validation")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain(recipe(steps=6, stages=ASR_THEN_SRT))), "utf-8")
    options = ["--out", tmp_path / "out", "--corpus", tmp_path / "corpus", "--threads", 1]
    return [sys.executable, "-m", "tests.training.drive", *map(str, [path, *options])]


def plain(settings: Recipe) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude_none=True)


def start(command: list[str], log: Path, **environment: object) -> "subprocess.Popen[bytes]":
    """Start a process without an accelerator, its output in a file, because its loader lives on."""
    own = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    own |= {name: str(value) for name, value in environment.items()}
    with log.open("wb") as file:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | own, stdout=file, stderr=file
        )


def ended(process: "subprocess.Popen[bytes]") -> int:
    """The process's exit status; none outlives its test."""
    try:
        return process.wait(280)
    finally:
        process.kill()


def test_a_killed_run_is_continued_by_the_same_command(command: list[str], tmp_path: Path) -> None:
    log, out = tmp_path / "output", tmp_path / "out"
    assert ended(start(command, log, KILL_AT=3)) == -signal.SIGKILL, log.read_text()
    assert [row["step"] for row in rows(out)] == [1, 2]
    assert not (out / "checkpoint").exists()
    assert ended(start(command, log)) == 0, log.read_text()
    assert [row["step"] for row in rows(out)] == [1, 2, 3, 4, 5, 6]
    assert [row["tasks"] for row in rows(out)] == ["asr 1"] * 3 + ["srt 1"] * 3
    seconds = [row["seconds"] for row in rows(out)]
    assert seconds == sorted(seconds)
    open_checkpoint(out / "checkpoint").edge_model()


def test_two_processes_train_one_model(command: list[str], tmp_path: Path) -> None:
    """As `accelerate launch` starts them, over the loopback interface."""
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
    assert [row["step"] for row in rows(out)] == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in out.iterdir()} == {
        "checkpoint",
        "log.jsonl",
        "state.pt",
        "training.png",
    }
    found = open_checkpoint(out / "checkpoint").edge_model().state_dict()
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["step"] == 6
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, state["learner"][f"edge.{name}"], rtol=1e-3, atol=1e-6)


def test_a_wrong_recipe_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.yaml"
    with pytest.raises(SystemExit) as ended, train.exit_on_error():
        train.main(path, tmp_path / "out", tmp_path / "corpus", torch.get_num_threads())
    assert ended.value.code == 2
    assert capfd.readouterr().err.startswith(f"error: {path} cannot be read: No such file")
    assert not (tmp_path / "out").exists()
