"""The evaluation's figures, and the command that writes them."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import image
from transformers import AutoTokenizer, Gemma3ForCausalLM

from esrt.checkpoint import Checkpoint
from tests.tiny_checkpoint import TINY, tiny_checkpoint
from tests.training.helpers import few, keep
from training.corpus import build
from training.corpus.build import Corpus
from training.corpus.speech import UNSEEN_VARIANTS
from training.corpus.text import Sentence
from training.evaluate import (
    BY_CHARACTER,
    CONDITIONS,
    Row,
    bars,
    error_rate,
    report,
    score,
    translate,
)

RIGHT = "eins zwei drei"
UTTERANCES = 3


def row(source: str, target: str, translation: str = RIGHT, transcript: str = "a b c") -> Row:
    return Row(source, target, "m1", transcript, "a b c", translation, RIGHT)


def test_scores_run_from_nothing_to_a_hundred() -> None:
    right, wrong = row("eng", "deu"), row("eng", "deu", "x", "a b")
    assert score([right]) == {"n": 1, "exact": 100, "chrf": 100, "transcript_exact": 100}
    assert score([wrong]) == {"n": 1, "exact": 0, "chrf": 0, "transcript_exact": 0}
    both = score([right, wrong])
    assert (both["n"], both["exact"], both["transcript_exact"]) == (2, 50, 50)
    assert 0 < both["chrf"] < 100


def test_no_rows_have_no_scores() -> None:
    assert score([]) == {"n": 0}


@pytest.mark.parametrize(
    ("source", "spoken", "transcripts", "expected"),
    [
        ("eng", ["a b c d"], ["a b c d"], {"wer": 0}),
        ("eng", ["a b c d"], ["a x c d"], {"wer": 25}),
        ("eng", ["a b c d"], ["a c d e f"], {"wer": 75}),  # one lost, two too many
        ("eng", ["a b c", "d"], ["a b c", ""], {"wer": 25}),  # over all words, not sentences
        ("kor", ["가나 다라"], ["가나 다마"], {"wer": 50}),
        ("cmn", ["我要一张票"], ["我要两张票"], {"cer": 20}),
        ("cmn", ["我要一张票"], [""], {"cer": 100}),
    ],
)
def test_error_rates(
    source: str, spoken: list[str], transcripts: list[str], expected: dict[str, float]
) -> None:
    found = [
        replace(row(source, "fra"), spoken=one, transcript=other)
        for one, other in zip(spoken, transcripts, strict=True)
    ]
    assert error_rate(found) == expected
    assert ("cer" in expected) == (source in BY_CHARACTER)


def test_each_direction_is_scored_by_itself() -> None:
    rows = [row("eng", "deu"), row("deu", "eng", "eins"), row("deu", "eng", "y")]
    found = report(rows, set())
    assert found["overall"]["n"] == 3
    assert [(d["src"], d["tgt"], d["n"], d["exact"]) for d in found["directions"]] == [
        ("deu", "eng", 2, 0),
        ("eng", "deu", 1, 100),
    ]


def test_each_source_has_its_error_rate() -> None:
    rows = [row("eng", "deu", transcript="a b"), row("eng", "fra"), row("cmn", "eng")]
    sources = {found["src"]: found for found in report(rows, set())["sources"]}
    assert sources["eng"]["wer"] == pytest.approx(16.67)
    assert (sources["eng"]["n"], sources["eng"]["transcript_exact"]) == (2, 50)
    assert sources["cmn"]["cer"] == 0


def test_sentences_that_differ_by_numbers_alone_are_told_apart() -> None:
    rows = [row("eng", "deu"), row("eng", "fra", "x")]
    rows[0] = replace(rows[0], spoken="Room 12, please.")
    found = report(rows, {"Room 7, please."})
    assert (found["overall"]["n"], found["overall"]["exact"]) == (2, 50)
    assert (found["beyond_numbers"]["n"], found["beyond_numbers"]["exact"]) == (1, 0)


def test_what_weights_before_knew_is_left_out_of_uncontaminated() -> None:
    rows = [row("eng", "deu"), replace(row("eng", "deu", "x"), spoken="known")]
    assert report(rows, set())["uncontaminated"]["n"] == 2
    found = report(rows, set(), contaminated={"known"})
    assert (found["overall"]["exact"], found["uncontaminated"]["exact"]) == (50, 100)


def test_unseen_voices_are_scored_apart() -> None:
    rows = [row("eng", "deu"), row("eng", "deu"), row("eng", "deu", "x")]
    rows[2] = replace(rows[2], variant=UNSEEN_VARIANTS[0])
    found = report(rows, set())
    assert (found["known_voices"]["n"], found["known_voices"]["exact"]) == (2, 100)
    assert (found["unseen_voices"]["n"], found["unseen_voices"]["exact"]) == (1, 0)


def test_consistency_compares_sources_and_english_with_the_rest() -> None:
    rows = [
        *[row("eng", "deu"), row("eng", "fra")],  # 100 and 100
        *[row("deu", "eng"), row("deu", "eng", "x"), row("deu", "fra")],  # 50 and 100
        *[row("fra", "eng"), row("fra", "deu", "x")],  # 100 and 0
    ]
    assert report(rows, set())["consistency"] == {
        "source_spread": 50,  # English 100, French 50
        "with_english": 87.5,
        "without_english": 50,
    }


def test_without_other_directions_english_is_not_compared() -> None:
    found = report([row("eng", "deu"), row("deu", "eng")], set())["consistency"]
    assert found == {"source_spread": 0, "with_english": 100, "without_english": None}


def held(rows: list[Row], size: int = 30_000_000) -> dict[str, tuple[float, bool]]:
    return {bar.name: (bar.value, bar.passed) for bar in bars(report(rows, set()), size)}


def test_a_good_model_is_within_every_bar() -> None:
    unseen = replace(row("fra", "eng"), variant=UNSEEN_VARIANTS[0])
    rows = [row("eng", "deu"), row("deu", "fra"), unseen]
    assert held(rows) == {
        "exact_all": (100, True),
        "chrf_all": (100, True),
        "exact_worst_direction": (100, True),
        "checkpoint_mb": (30, True),
        "english_gap": (0, True),
        "exact_unseen_voices": (100, True),
    }


def test_a_bad_model_is_beyond_them() -> None:
    rows = [
        row("eng", "deu"),
        row("deu", "fra", "x"),
        replace(row("deu", "fra", "y"), variant="m2"),
    ]
    found = held(rows, 40_010_000)
    assert not any(passed for _, passed in found.values())
    assert found["exact_all"][0] == pytest.approx(33.33)
    assert found["exact_worst_direction"][0] == found["exact_unseen_voices"][0] == 0
    assert found["english_gap"][0] == 100
    assert found["checkpoint_mb"][0] == 40.01


def test_bars_ask_only_for_what_was_measured() -> None:
    assert held([row("eng", "deu")]).keys() == {
        "exact_all",
        "chrf_all",
        "exact_worst_direction",
        "checkpoint_mb",
    }


# With the tiny checkpoint, which knows English and German.


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def two(corpus: Corpus) -> Corpus:
    """Utterances in English and German alone."""
    chosen = [
        replace(example, texts={code: example.texts[code] for code in TINY.languages})
        for example in corpus.examples
        if example.language in TINY.languages
    ]
    return replace(corpus, examples=chosen[:UTTERANCES])


def translated(tiny: Checkpoint, corpus: Corpus, **options: Any) -> list[Row]:
    decoder = Gemma3ForCausalLM.from_pretrained(tiny.decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny.decoder)
    return translate(tiny.edge_model(), decoder, tokenizer, corpus, **options)


def test_every_utterance_goes_into_every_other_language(tiny: Checkpoint, corpus: Corpus) -> None:
    """And a batch's size changes nothing."""
    some = few(corpus, 2)
    rows = translated(tiny, some, batch=5)
    assert len(rows) == 2 * 11
    for example in some.examples:
        mine = [one for one in rows if one.source == example.language]
        assert {one.target for one in mine} == set(example.texts) - {example.language}
        for one in mine:
            assert (one.spoken, one.variant) == (example.texts[one.source], example.variant)
            assert one.reference == example.texts[one.target]
    assert translated(tiny, some, batch=100) == rows


def test_directions_are_taken_in_turn(tiny: Checkpoint, corpus: Corpus) -> None:
    targets = [one.target for one in translated(tiny, few(corpus, 5), directions=1)]
    assert len(targets) == 5
    assert len(set(targets)) > 2


@pytest.fixture
def run_command(
    two: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splits: dict[str, list[Sentence]]
) -> Any:
    """Run the module as a program in this process."""
    keep(two, tmp_path / "corpus", "test")
    monkeypatch.setattr(build, "sentences", lambda name: splits[name])

    def run(*arguments: str | Path) -> None:
        words = ["evaluate", "--corpus", tmp_path / "corpus", *arguments]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        monkeypatch.delitem(sys.modules, "training.evaluate")
        runpy.run_module("training.evaluate", run_name="__main__")

    return run


def test_the_command_writes_figures_and_a_picture(
    run_command: Any, tiny: Checkpoint, tmp_path: Path
) -> None:
    out, picture = tmp_path / "figures" / "test.json", tmp_path / "figures" / "test.png"
    with pytest.raises(SystemExit) as ended:
        run_command("--checkpoint", tiny.folder, "--json", out, "--plot", picture)
    assert not ended.value.code
    found = json.loads(out.read_text("utf-8"))
    assert found["settings"] == {
        "model": "esrt-tiny",
        "fingerprint": tiny.fingerprint,
        "split": "test",
        "utterances": UTTERANCES,
    }
    assert found["overall"]["n"] == UTTERANCES
    assert [(one["src"], one["tgt"]) for one in found["rows"]] == [("deu", "eng"), ("eng", "deu")]
    assert [one["src"] for one in found["sources"]] == ["deu", "eng"]
    assert all("wer" in one for one in found["sources"])
    assert found["conditions"].keys() == CONDITIONS.keys()
    assert all(one["n"] == UTTERANCES for one in found["conditions"].values())
    assert found["languages"] == ["eng", "deu"]
    assert {bar["name"]: bar["holds"] for bar in found["bars"]} == {
        "exact_all": False,
        "chrf_all": False,
        "exact_worst_direction": False,
        "checkpoint_mb": True,
    }
    assert {"machine", "versions", "commit", "beyond_numbers", "consistency"} <= found.keys()
    assert min(image.imread(picture).shape[:2]) > 100


def test_a_missing_checkpoint_is_one_line(
    run_command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command("--checkpoint", tmp_path)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: No checkpoint in")
    assert error.count("\n") == 1


def test_a_list_names_what_weights_before_knew(
    run_command: Any, tiny: Checkpoint, two: Corpus, tmp_path: Path
) -> None:
    out, contaminated = tmp_path / "test.json", tmp_path / "contaminated.txt"
    contaminated.write_text(two.examples[0].texts["eng"] + "\n", "utf-8")
    with pytest.raises(SystemExit):
        run_command("--checkpoint", tiny.folder, "--json", out, "--contaminated", contaminated)
    found = json.loads(out.read_text("utf-8"))
    assert 0 < found["uncontaminated"]["n"] < found["overall"]["n"]


def test_a_list_of_other_sentences_is_refused(
    run_command: Any,
    tiny: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    contaminated = tmp_path / "contaminated.txt"
    contaminated.write_text("Nobody said this.\n", "utf-8")
    with pytest.raises(SystemExit) as ended:
        run_command("--checkpoint", tiny.folder, "--contaminated", contaminated)
    assert ended.value.code == 1
    assert "'Nobody said this.', which is not in the split" in capsys.readouterr().err
