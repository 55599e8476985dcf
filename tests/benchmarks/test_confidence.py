"""The threshold of the confidence, and the shares that it leads to."""

import json

from benchmarks.confidence import Answered, row, threshold_of
from esrt.bundled import CHECKPOINT
from esrt.checkpoint import open_checkpoint


def test_the_threshold_cautions_one_right_answer_in_twenty() -> None:
    right = [Answered(True, -number / 100) for number in range(100)]
    wrong = [Answered(False, -9.0)] * 50
    threshold = threshold_of(right + wrong)
    assert threshold == -0.94
    assert sum(answer.confidence < threshold for answer in right) == 5


def test_a_row_counts_cautions_and_silent_failures() -> None:
    answers = [
        *[Answered(True, -0.01)] * 6,
        *[Answered(True, -0.5)] * 2,
        *[Answered(False, -0.5)] * 3,
        *[Answered(False, -0.01)] * 1,
    ]
    assert row("noise", answers, -0.1) == {
        "condition": "noise",
        "n": 12,
        "right_pct": 66.67,
        "cautioned_right_pct": 25.0,
        "cautioned_wrong_pct": 75.0,
        "silent_failures_pct": 8.33,
    }


def test_the_bundled_model_has_a_threshold() -> None:
    record = json.loads((CHECKPOINT / "confidence.json").read_text("utf-8"))
    checkpoint = open_checkpoint(CHECKPOINT)
    assert record["fingerprint"] == checkpoint.fingerprint
    assert record["threshold"] == checkpoint.confidence_threshold
    clean, *_ = record["rows"]
    assert clean["condition"] == "clean"
    assert clean["cautioned_right_pct"] <= 5
