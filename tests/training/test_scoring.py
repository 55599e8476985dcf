"""Scores: exact match, chrF, error rates, groups, and bars."""

from dataclasses import replace

import pytest

from training.corpus.speech import UNSEEN_VARIANTS
from training.scoring import BY_CHARACTER, Prediction, bars, error_rate, report, score

RIGHT = "eins zwei drei"


def prediction(
    source: str, target: str, translation: str = RIGHT, transcript: str = "a b c"
) -> Prediction:
    return Prediction(source, target, "m1", transcript, "a b c", translation, RIGHT)


def test_scores_range_from_0_to_100() -> None:
    right, wrong = prediction("eng", "deu"), prediction("eng", "deu", "x", "a b")
    assert score([right]) == {"n": 1, "exact": 100, "chrf": 100, "transcript_exact": 100}
    assert score([wrong]) == {"n": 1, "exact": 0, "chrf": 0, "transcript_exact": 0}
    both = score([right, wrong])
    assert (both["n"], both["exact"], both["transcript_exact"]) == (2, 50, 50)
    assert 0 < both["chrf"] < 100


def test_no_predictions_have_no_scores() -> None:
    assert score([]) == {"n": 0}


@pytest.mark.parametrize(
    ("source", "spoken", "transcripts", "expected"),
    [
        ("eng", ["a b c d"], ["a b c d"], {"wer": 0}),
        ("eng", ["a b c d"], ["a x c d"], {"wer": 25}),
        ("eng", ["a b c d"], ["a c d e f"], {"wer": 75}),  # one deletion, two insertions
        ("eng", ["a b c", "d"], ["a b c", ""], {"wer": 25}),  # over all words, not per sentence
        ("kor", ["가나 다라"], ["가나 다마"], {"wer": 50}),
        ("cmn", ["我要一张票"], ["我要两张票"], {"cer": 20}),
        ("cmn", ["我要一张票"], [""], {"cer": 100}),
    ],
)
def test_error_rates(
    source: str, spoken: list[str], transcripts: list[str], expected: dict[str, float]
) -> None:
    found = [
        replace(prediction(source, "fra"), reference_transcript=one, transcript=other)
        for one, other in zip(spoken, transcripts, strict=True)
    ]
    assert error_rate(found) == expected
    assert ("cer" in expected) == (source in BY_CHARACTER)


def test_each_direction_has_its_scores() -> None:
    predictions = [
        prediction("eng", "deu"),
        prediction("deu", "eng", "eins"),
        prediction("deu", "eng", "y"),
    ]
    found = report(predictions, set())
    assert found["overall"]["n"] == 3
    assert [(d["src"], d["tgt"], d["n"], d["exact"]) for d in found["directions"]] == [
        ("deu", "eng", 2, 0),
        ("eng", "deu", 1, 100),
    ]


def test_each_source_has_its_error_rate() -> None:
    predictions = [
        prediction("eng", "deu", transcript="a b"),
        prediction("eng", "fra"),
        prediction("cmn", "eng"),
    ]
    sources = {found["src"]: found for found in report(predictions, set())["sources"]}
    assert sources["eng"]["wer"] == pytest.approx(16.67)
    assert (sources["eng"]["n"], sources["eng"]["transcript_exact"]) == (2, 50)
    assert sources["cmn"]["cer"] == 0


def test_sentences_that_differ_only_in_numbers_are_known() -> None:
    predictions = [prediction("eng", "deu"), prediction("eng", "fra", "x")]
    predictions[0] = replace(predictions[0], reference_transcript="Room 12, please.")
    found = report(predictions, {"Room 7, please."})
    assert (found["overall"]["n"], found["overall"]["exact"]) == (2, 50)
    assert (found["beyond_numbers"]["n"], found["beyond_numbers"]["exact"]) == (1, 0)


def test_contaminated_sentences_are_left_out_of_uncontaminated() -> None:
    predictions = [
        prediction("eng", "deu"),
        replace(prediction("eng", "deu", "x"), reference_transcript="known"),
    ]
    assert report(predictions, set())["uncontaminated"]["n"] == 2
    found = report(predictions, set(), contaminated={"known"})
    assert (found["overall"]["exact"], found["uncontaminated"]["exact"]) == (50, 100)


def test_unseen_voices_are_scored_separately() -> None:
    predictions = [
        prediction("eng", "deu"),
        prediction("eng", "deu"),
        prediction("eng", "deu", "x"),
    ]
    predictions[2] = replace(predictions[2], variant=UNSEEN_VARIANTS[0])
    found = report(predictions, set())
    assert (found["known_voices"]["n"], found["known_voices"]["exact"]) == (2, 100)
    assert (found["unseen_voices"]["n"], found["unseen_voices"]["exact"]) == (1, 0)


def test_consistency_compares_sources_and_english_with_the_rest() -> None:
    predictions = [
        *[prediction("eng", "deu"), prediction("eng", "fra")],  # 100 and 100
        *[
            prediction("deu", "eng"),
            prediction("deu", "eng", "x"),
            prediction("deu", "fra"),
        ],  # 50 and 100
        *[prediction("fra", "eng"), prediction("fra", "deu", "x")],  # 100 and 0
    ]
    assert report(predictions, set())["consistency"] == {
        "source_spread": 50,  # English 100, French 50
        "with_english": 87.5,
        "without_english": 50,
    }


def test_without_other_directions_english_is_not_compared() -> None:
    found = report([prediction("eng", "deu"), prediction("deu", "eng")], set())["consistency"]
    assert found == {"source_spread": 0, "with_english": 100, "without_english": None}


def results(predictions: list[Prediction], size: int = 30_000_000) -> dict[str, tuple[float, bool]]:
    return {bar.name: (bar.value, bar.passed) for bar in bars(report(predictions, set()), size)}


def test_a_good_model_passes_every_bar() -> None:
    unseen = replace(prediction("fra", "eng"), variant=UNSEEN_VARIANTS[0])
    predictions = [prediction("eng", "deu"), prediction("deu", "fra"), unseen]
    assert results(predictions) == {
        "exact_all": (100, True),
        "chrf_all": (100, True),
        "exact_worst_direction": (100, True),
        "checkpoint_mb": (30, True),
        "english_gap": (0, True),
        "exact_unseen_voices": (100, True),
    }


def test_a_bad_model_fails_every_bar() -> None:
    predictions = [
        prediction("eng", "deu"),
        prediction("deu", "fra", "x"),
        replace(prediction("deu", "fra", "y"), variant="m2"),
    ]
    found = results(predictions, 40_010_000)
    assert not any(passed for _, passed in found.values())
    assert found["exact_all"][0] == pytest.approx(33.33)
    assert found["exact_worst_direction"][0] == found["exact_unseen_voices"][0] == 0
    assert found["english_gap"][0] == 100
    assert found["checkpoint_mb"][0] == 40.01


def test_bars_include_only_measured_scores() -> None:
    assert results([prediction("eng", "deu")]).keys() == {
        "exact_all",
        "chrf_all",
        "exact_worst_direction",
        "checkpoint_mb",
    }
