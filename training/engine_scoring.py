"""Scores of a model on a corpus of many voices: by engine, language and confidence."""

import dataclasses
import re
import statistics
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jiwer

from esrt.benchmark_report import Threshold
from training.corpus.build import NON_SPEECH, OPEN
from training.scored_generation import Scores
from training.scoring import BY_CHARACTER, Prediction, grouped, score

# Kind of utterances whose prompt names a wrong language.
WRONG_LANGUAGE = "wrong-language"
_OUTSIDE = (OPEN, NON_SPEECH, WRONG_LANGUAGE)
# Share of right validation answers that a threshold may lose, in percent: less than on the test.
_LOST_PCT = 4.0
SCORES = tuple(field.name for field in dataclasses.fields(Scores))


def in_domain(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Answers to sentences of the domain."""
    return [one for one in predictions if one.kind not in _OUTSIDE]


def choose_thresholds(validation: Sequence[Prediction]) -> dict[str, float]:
    """Threshold of each score, which most right answers of the validation split reach."""
    right = [one for one in in_domain(validation) if _is_right(one)]
    thresholds = {}
    for name in SCORES:
        values = sorted(_value(one, name) for one in right)
        thresholds[name] = values[int(len(values) * _LOST_PCT / 100)] if values else 0.0
    return thresholds


def best_score(validation: Sequence[Prediction], thresholds: dict[str, float]) -> str:
    """Score whose threshold lets the fewest wrong validation answers pass."""

    def passing(name: str) -> int:
        wrong = (one for one in in_domain(validation) if not _is_right(one))
        return sum(_value(one, name) >= thresholds[name] for one in wrong)

    return min(SCORES, key=passing)


def engine_report(
    test: Sequence[Prediction], validation: Sequence[Prediction], trained_bytes: int
) -> tuple[dict[str, Any], list[Threshold]]:
    """Scores by engine, language and direction; the confidence; and the bars.

    Args:
        test: answers to the test split.
        validation: answers to the validation split, on which thresholds are chosen.
        trained_bytes: size of the checkpoint's files.
    """
    domain = in_domain(test)
    thresholds = choose_thresholds(validation)
    chosen = best_score(validation, thresholds)
    engines = [
        {"engine": engine} | score(group)
        for engine, group in grouped(domain, lambda one: one.engine).items()
    ]
    sources = [
        {"engine": engine, "src": source} | score(group) | plain_error_rate(group)
        for (engine, source), group in grouped(domain, lambda one: (one.engine, one.source)).items()
    ]
    directions = [
        {"src": source, "tgt": target} | score(group)
        for (source, target), group in grouped(domain, lambda one: (one.source, one.target)).items()
    ]
    human = [one for one in test if one.kind == OPEN and one.engine == "human"]
    open_speech = [
        {"src": source, "n": len(group)} | plain_error_rate(group)
        for source, group in grouped(human, lambda one: one.source).items()
    ]
    doubts = {name: _doubts(test, name, thresholds[name]) for name in SCORES}
    confidence = [
        {"score": name, "threshold": thresholds[name], "chosen": name == chosen} | doubts[name]
        for name in SCORES
    ]
    result = {
        "engines": engines,
        "sources": sources,
        "directions": directions,
        "open_speech": open_speech,
        "confidence": confidence,
    }
    return result, _bars(result, doubts[chosen], trained_bytes)


def _doubts(test: Sequence[Prediction], name: str, threshold: float) -> dict[str, float]:
    """Shares of answers below and above a threshold, in percent.

    ``nonspeech_answered_pct`` counts every answer that is not empty, whatever its score.
    """
    domain = in_domain(test)

    def sure(one: Prediction) -> bool:
        return _value(one, name) >= threshold

    def flagged(one: Prediction) -> bool:
        return not _is_answered(one) or not sure(one)

    def of_kind(kind: str) -> list[Prediction]:
        return [one for one in test if one.kind == kind]

    human = [one for one in of_kind(OPEN) if one.engine == "human"]
    return {
        "confident_errors_pct": _share(filter(sure, domain), lambda one: not _is_right(one)),
        "right_kept_pct": _share(filter(_is_right, domain), sure),
        "human_open_flagged_pct": _share(human, flagged),
        "wrong_language_flagged_pct": _share(of_kind(WRONG_LANGUAGE), flagged),
        "nonspeech_answered_pct": _share(of_kind(NON_SPEECH), _is_answered),
        "nonspeech_unflagged_pct": _share(of_kind(NON_SPEECH), lambda one: not flagged(one)),
    }


def _bars(result: dict[str, Any], doubts: dict[str, float], trained_bytes: int) -> list[Threshold]:
    """Thresholds of issue 21; an engine without test utterances has no bar."""
    exact = {row["engine"]: row["exact"] for row in result["engines"]}
    engines = (
        ("exact_espeak", "espeak", 92),
        ("exact_kokoro_unseen_voices", "kokoro", 92),
        ("exact_piper", "piper", 88),
    )
    worst = min((row["exact"] for row in result["directions"]), default=0.0)
    return [
        *(
            Threshold(name, exact[engine], bound, at_least=True)
            for name, engine, bound in engines
            if engine in exact
        ),
        Threshold("exact_worst_direction", worst, 80, at_least=True),
        Threshold("confident_errors_pct", doubts["confident_errors_pct"], 3),
        Threshold("right_kept_pct", doubts["right_kept_pct"], 95, at_least=True),
        Threshold("human_open_flagged_pct", doubts["human_open_flagged_pct"], 95, at_least=True),
        Threshold("nonspeech_answered_pct", doubts["nonspeech_answered_pct"], 2),
        Threshold("mini_mb", round(trained_bytes / 1e6, 2), 40),
    ]


def plain_error_rate(predictions: Sequence[Prediction]) -> dict[str, float]:
    """WER or CER in percent of one language's transcripts, without case and punctuation."""
    references = [plain(one.reference_transcript) for one in predictions]
    transcripts = [plain(one.transcript) for one in predictions]
    if predictions[0].source in BY_CHARACTER:
        references, transcripts = (
            [text.replace(" ", "") for text in texts] for texts in (references, transcripts)
        )
        return {"cer": round(100 * jiwer.cer(references, transcripts), 2)}
    return {"wer": round(100 * jiwer.wer(references, transcripts), 2)}


def plain(text: str) -> str:
    """Lower-case letters and digits of a text, with single spaces."""
    kept = "".join(
        character if unicodedata.category(character)[0] in "LMN" else " "
        for character in text.lower().replace("'", "").replace("’", "")
    )
    return re.sub(r"\s+", " ", kept).strip()


def answer_row(one: Prediction) -> dict[str, Any]:
    """An answer with its scores, for a file of answers."""
    return dataclasses.asdict(one) | {"right": _is_right(one)}


def _is_right(one: Prediction) -> bool:
    return one.translation == one.reference_translation


def _is_answered(one: Prediction) -> bool:
    return bool(one.transcript.strip() or one.translation.strip())


def _value(one: Prediction, name: str) -> float:
    assert one.scores is not None
    return float(getattr(one.scores, name))


def _share(predictions: Iterable[Prediction], condition: Callable[[Prediction], bool]) -> float:
    """Share in percent; 0 of nothing."""
    matches = [condition(one) for one in predictions]
    return round(100 * statistics.mean(matches), 2) if matches else 0.0
