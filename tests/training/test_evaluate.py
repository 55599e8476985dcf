"""The evaluation's figures."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.corpus.build import Corpus
from training.evaluate import Row, report, score

ROOT = Path(__file__).parents[2]


def row(source: str, target: str, translation: str, transcript: str = "a b c") -> Row:
    return Row(source, target, transcript, "a b c", translation, "eins zwei drei")


def test_scores_run_from_nothing_to_a_hundred() -> None:
    right, wrong = row("eng", "deu", "eins zwei drei"), row("eng", "deu", "x", "a b")
    assert score([right]) == {"n": 1, "exact": 100, "chrf": 100, "transcript_exact": 100}
    assert score([wrong]) == {"n": 1, "exact": 0, "chrf": 0, "transcript_exact": 0}
    both = score([right, wrong])
    assert (both["n"], both["exact"], both["transcript_exact"]) == (2, 50, 50)
    assert 0 < both["chrf"] < 100


def test_each_direction_is_scored_by_itself() -> None:
    rows = [row("eng", "deu", "eins zwei drei"), row("deu", "eng", "eins"), row("deu", "eng", "y")]
    found = report(rows, set())
    assert found["overall"]["n"] == 3
    assert [(d["src"], d["tgt"], d["n"], d["exact"]) for d in found["directions"]] == [
        ("deu", "eng", 2, 0),
        ("eng", "deu", 1, 100),
    ]


def test_sentences_that_differ_by_numbers_alone_are_told_apart() -> None:
    rows = [row("eng", "deu", "eins zwei drei"), row("eng", "fra", "x")]
    rows[0] = replace(rows[0], spoken="Room 12, please.")
    found = report(rows, {"Room 7, please."})
    assert (found["overall"]["n"], found["overall"]["exact"]) == (2, 50)
    assert (found["beyond_numbers"]["n"], found["beyond_numbers"]["exact"]) == (1, 0)


@pytest.fixture
def corpus_folder(corpus: Corpus, tmp_path: Path) -> Path:
    """A built test split: four utterances of noise."""
    folder = tmp_path / "corpus" / "test"
    folder.mkdir(parents=True)
    examples = corpus.examples[:4]
    lines = [json.dumps(vars(example), ensure_ascii=False) for example in examples]
    (folder / "index.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    np.save(folder / "mel.npy", corpus.mel[: examples[-1].start + examples[-1].frames])
    return folder.parent


def test_the_command_writes_the_figures(corpus_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures" / "test.json"
    command = [sys.executable, "-m", "training.evaluate", "--corpus", str(corpus_folder)]
    subprocess.run([*command, "--json", str(out)], cwd=ROOT, check=True, capture_output=True)
    found = json.loads(out.read_text("utf-8"))
    assert found["overall"]["n"] == 12
    assert len(found["directions"]) == 12
    assert {"overall", "directions", "languages", "fingerprint", "split"} <= set(found)


def test_a_missing_checkpoint_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.evaluate", "--checkpoint", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: No checkpoint in")
    assert "Traceback" not in done.stderr
