"""Scores on a corpus of many voices: engines, doubt, and the bars of issue 21."""

from dataclasses import replace

import pytest

from training.corpus.build import NON_SPEECH, OPEN
from training.engine_scoring import (
    WRONG_LANGUAGE,
    answer_row,
    best_score,
    choose_thresholds,
    engine_report,
    plain,
    plain_error_rate,
)
from training.scored_generation import Scores
from training.scoring import Prediction


def answer(
    mean: float,
    right: bool = True,
    minimum: float | None = None,
    engine: str = "espeak",
    kind: str = "phrase",
) -> Prediction:
    lowest = mean if minimum is None else minimum
    scores = Scores(mean=mean, minimum=lowest, margin=lowest + 5)
    translation = "Ja, bitte." if right else "Nein."
    return Prediction(
        "eng", "deu", "m1", "Yes.", "Yes, please.", translation, "Ja, bitte.", kind, engine, scores
    )


SURE = [answer(-0.01 * number) for number in range(50)]
# The mean does not tell these wrong answers from right ones; the minimum does.
WRONG = [answer(-0.1, right=False, minimum=-2.0) for _ in range(10)]


def test_thresholds_keep_most_right_answers_of_validation() -> None:
    thresholds = choose_thresholds([*SURE, *WRONG])
    assert thresholds["mean"] == pytest.approx(-0.47)
    assert thresholds["margin"] == pytest.approx(5 - 0.47)


def test_the_score_that_lets_the_fewest_wrong_answers_pass_is_chosen() -> None:
    validation = [*SURE, *WRONG]
    assert best_score(validation, choose_thresholds(validation)) == "minimum"


def test_doubt_is_measured_on_the_test() -> None:
    outside = [
        replace(answer(-1.5, engine="human", kind=OPEN), reference_translation=""),
        replace(answer(-0.1, engine="human", kind=OPEN), reference_translation=""),
        replace(answer(-3, kind=NON_SPEECH), transcript="", translation=""),
        replace(answer(-3, kind=NON_SPEECH), reference_translation=""),
        replace(answer(-0.1, kind=WRONG_LANGUAGE), reference_translation=""),
    ]
    test = [*SURE, *WRONG, answer(-0.2, right=False), *outside]
    result, bars = engine_report(test, [*SURE, *WRONG], 13_000_000)
    rows = {row["score"]: row for row in result["confidence"]}
    assert rows["minimum"]["chosen"]
    assert not rows["mean"]["chosen"]
    assert rows["minimum"]["confident_errors_pct"] == pytest.approx(100 / 49, abs=0.01)
    assert rows["minimum"]["right_kept_pct"] == 96
    assert rows["minimum"]["human_open_flagged_pct"] == 50
    assert rows["minimum"]["nonspeech_answered_pct"] == 50
    assert rows["minimum"]["nonspeech_unflagged_pct"] == 0
    assert rows["minimum"]["wrong_language_flagged_pct"] == 0
    assert rows["mean"]["confident_errors_pct"] > 15
    values = {bar.name: (bar.value, bar.passed) for bar in bars}
    assert list(values) == [
        "exact_espeak",
        "exact_worst_direction",
        "confident_errors_pct",
        "right_kept_pct",
        "human_open_flagged_pct",
        "nonspeech_answered_pct",
        "mini_mb",
    ]
    assert values["exact_espeak"] == (round(100 * 50 / 61, 2), False)
    assert values["mini_mb"] == (13.0, True)


def test_each_engine_has_its_bar() -> None:
    test = [answer(0, engine=engine) for engine in ("espeak", "kokoro", "piper")]
    test.append(answer(0, right=False, engine="kokoro"))
    result, bars = engine_report(test, SURE, 0)
    values = {bar.name: bar.value for bar in bars}
    assert values["exact_kokoro_unseen_voices"] == 50
    assert values["exact_piper"] == values["exact_espeak"] == 100
    assert [row["engine"] for row in result["sources"]] == ["espeak", "kokoro", "piper"]


def test_error_rates_ignore_case_and_punctuation() -> None:
    assert plain('It\'s 5, "Yes" — no!') == "its 5 yes no"
    one = replace(answer(0), transcript="yes PLEASE")
    assert plain_error_rate([one]) == {"wer": 0}
    chinese = replace(one, source="cmn", reference_transcript="你好。", transcript="你 号")
    assert plain_error_rate([chinese]) == {"cer": 50}


def test_a_row_of_the_answers_has_all_scores() -> None:
    row = answer_row(answer(-0.1, right=False, minimum=-2))
    assert row["scores"] == {"mean": -0.1, "minimum": -2, "margin": 3, "agreement": 0}
    assert row["right"] is False
