"""A short training run: it learns, it can be killed and continued, and what it writes loads."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Gemma3ForCausalLM

from esrt.checkpoint import open_checkpoint
from training.corpus.build import Corpus
from training.data import batches
from training.evaluate import translate
from training.train import Recipe, Run

RECIPE = Recipe(minutes=1000, recognition=0, batch=4, warmup_steps=1, vocabulary=400)
STEPS = 2


def some(corpus: Corpus, count: int, seed: int = 0) -> list[tuple[list[Any], list[str]]]:
    """The shortest batches of a pass, to be quick."""
    passed = batches(corpus, RECIPE.batch, Random(seed))
    return sorted(passed, key=lambda batch: batch[0][0].frames)[:count]


@pytest.fixture(scope="module")
def started(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was saved after some steps."""
    run = Run(RECIPE, corpus, tmp_path_factory.mktemp("run"))
    for batch in some(corpus, STEPS):
        run.train_step(*batch)
    run.seconds = 12.5
    run.save()
    return run


def test_a_run_continues_where_it_was_saved(started: Run, corpus: Corpus) -> None:
    resumed = Run(RECIPE, corpus, started.folder)
    assert (resumed.step, resumed.seconds) == (STEPS, 12.5)
    expected = started.learner.state_dict()
    assert all(torch.equal(expected[k], v) for k, v in resumed.learner.state_dict().items())
    # The optimizer's memory is part of the state: the next step is the same in both.
    batch = some(corpus, 1, seed=1)[0]
    losses = started.train_step(*batch), resumed.train_step(*batch)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert started.step == resumed.step == STEPS + 1
    expected = started.learner.state_dict()
    for name, tensor in resumed.learner.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)


def test_a_save_that_broke_off_does_no_harm(started: Run, corpus: Corpus) -> None:
    (started.folder / "state.tmp").write_bytes(b"half")
    assert Run(RECIPE, corpus, started.folder).step == STEPS


def test_a_fresh_folder_starts_from_the_seed(corpus: Corpus, tmp_path: Path) -> None:
    one, again = (Run(RECIPE, corpus, tmp_path / name) for name in "ab")
    other = Run(replace(RECIPE, seed=18), corpus, tmp_path / "c")
    weights = [run.learner.edge.q_former.query for run in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert (one.step, one.seconds, one.done) == (0, 0.0, 0.0)


def test_it_learns_what_it_sees(corpus: Corpus, tmp_path: Path) -> None:
    run = Run(replace(RECIPE, letter_ctc=0.1, piece_ctc=0.1), corpus, tmp_path)
    batch = some(corpus, 1)[0]
    losses = [run.train_step(*batch) for _ in range(25)]
    assert losses[-1]["text"] < 0.5 * losses[0]["text"]
    assert all(torch.isfinite(torch.tensor(list(step.values()))).all() for step in losses)


def test_the_checkpoint_is_the_trained_model(started: Run, corpus: Corpus) -> None:
    started.export()
    checkpoint = open_checkpoint(started.folder / "checkpoint")
    assert checkpoint.config.name == "esrt-nano"
    expected, found = started.learner.edge.state_dict(), checkpoint.edge_model().state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-6)  # stored as float16
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    assert len(tokenizer) == decoder.config.vocab_size == 400
    small = replace(corpus, examples=corpus.examples[:2])
    rows = translate(checkpoint.edge_model(), decoder, tokenizer, small)
    assert len(rows) == 2 * 3
    for row in rows:
        (example,) = [e for e in small.examples if e.texts[row.source] == row.spoken]
        assert row.reference == example.texts[row.target]


def test_a_run_ends_with_its_budget(corpus: Corpus, tmp_path: Path) -> None:
    short = replace(RECIPE, minutes=0.01)
    few = replace(corpus, examples=sorted(corpus.examples, key=lambda e: e.frames)[:8])
    Run(short, few, tmp_path).run(replace(few, examples=few.examples[:2]))
    open_checkpoint(tmp_path / "checkpoint").edge_model()
    (line,) = (tmp_path / "log.jsonl").read_text("utf-8").splitlines()
    row = json.loads(line)
    assert row["step"] >= 1
    assert 0 <= row["validation_exact"] <= 100
    finished = Run(short, few, tmp_path)
    assert finished.done >= 1
    assert finished.step == row["step"]
