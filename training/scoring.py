"""Scores of predicted transcripts and translations: exact match, chrF, WER and CER."""

import re
import statistics
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import jiwer
from sacrebleu.metrics import CHRF

from esrt.benchmark_report import Threshold
from training.corpus.speech import UNSEEN_VARIANTS
from training.scored_generation import Scores

# Languages written without spaces between words: scored by CER instead of WER.
BY_CHARACTER = frozenset({"cmn", "jpn", "khm", "lao", "mya", "tha", "yue"})


@dataclass(frozen=True)
class Prediction:
    """Predicted transcript and translation of an utterance, with their references.

    Attributes:
        source: ISO 639-3 code of the spoken language.
        target: ISO 639-3 code of the translation's language.
        variant: name of the voice.
        transcript: predicted transcript.
        reference_transcript: correct transcript.
        translation: predicted translation.
        reference_translation: correct translation.
        kind: kind of the example (`training.corpus.build.Example`).
        engine: what spoke.
        scores: how certain the answer is.
    """

    source: str
    target: str
    variant: str
    transcript: str
    reference_transcript: str
    translation: str
    reference_translation: str
    kind: str = "phrase"
    engine: str = "espeak"
    scores: Scores | None = field(default=None, compare=False)


def score(predictions: list[Prediction]) -> dict[str, Any]:
    """Score exact match and chrF of translations, exact match of transcripts: 0 to 100."""
    if not predictions:
        return {"n": 0}
    chrf = CHRF().corpus_score(
        [prediction.translation for prediction in predictions],
        [[prediction.reference_translation for prediction in predictions]],
    )
    return {
        "n": len(predictions),
        "exact": _percent(
            prediction.translation == prediction.reference_translation for prediction in predictions
        ),
        "chrf": round(chrf.score, 2),
        "transcript_exact": _percent(
            prediction.transcript == prediction.reference_transcript for prediction in predictions
        ),
    }


def error_rate(predictions: list[Prediction]) -> dict[str, float]:
    """Compute WER or CER in percent for the transcripts of one source language."""
    references = [prediction.reference_transcript for prediction in predictions]
    transcripts = [prediction.transcript for prediction in predictions]
    if predictions[0].source in BY_CHARACTER:
        return {"cer": round(100 * jiwer.cer(references, transcripts), 2)}
    return {"wer": round(100 * jiwer.wer(references, transcripts), 2)}


def report(
    predictions: list[Prediction], trained: set[str], contaminated: Collection[str] = frozenset()
) -> dict[str, Any]:
    """Score all predictions, groups of them, and each source language and direction.

    Groups: ``uncontaminated`` leaves out sentences that the initial weights were trained on.
    ``beyond_numbers`` leaves out sentences that differ from a training sentence in numbers only.
    ``unseen_voices`` has the voices that training lacks, ``known_voices`` all others.
    ``consistency`` compares means of exact match: best and worst source language, directions with
    and without English.

    Args:
        predictions: the predictions.
        trained: texts of the training split.
        contaminated: texts of test sentences that the initial weights were trained on.
    """
    patterns = {_without_numbers(text) for text in trained}
    by_direction = grouped(predictions, lambda prediction: (prediction.source, prediction.target))
    directions = [
        {"src": source, "tgt": target} | score(group)
        for (source, target), group in by_direction.items()
    ]
    sources = [
        {"src": source} | score(group) | error_rate(group)
        for source, group in grouped(predictions, lambda prediction: prediction.source).items()
    ]

    def score_where(condition: Callable[[Prediction], bool]) -> dict[str, Any]:
        return score([prediction for prediction in predictions if condition(prediction)])

    return {
        "overall": score(predictions),
        "uncontaminated": score_where(
            lambda prediction: prediction.reference_transcript not in contaminated
        ),
        "beyond_numbers": score_where(
            lambda prediction: _without_numbers(prediction.reference_transcript) not in patterns
        ),
        "known_voices": score_where(lambda prediction: prediction.variant not in UNSEEN_VARIANTS),
        "unseen_voices": score_where(lambda prediction: prediction.variant in UNSEEN_VARIANTS),
        "consistency": _consistency(directions, sources),
        "sources": sources,
        "directions": directions,
    }


def _consistency(
    directions: list[dict[str, Any]], sources: list[dict[str, Any]]
) -> dict[str, float | None]:
    exact = [row["exact"] for row in sources]
    with_english = [row["exact"] for row in directions if "eng" in (row["src"], row["tgt"])]
    without = [row["exact"] for row in directions if "eng" not in (row["src"], row["tgt"])]
    return {
        "source_spread": round(max(exact) - min(exact), 2),
        "with_english": round(statistics.mean(with_english), 2) if with_english else None,
        "without_english": round(statistics.mean(without), 2) if without else None,
    }


def bars(result: dict[str, Any], checkpoint_bytes: int) -> list[Threshold]:
    """Thresholds that a bundled model must pass.

    Args:
        result: scores from `report`.
        checkpoint_bytes: size of the weights.
    """
    worst = min(row["exact"] for row in result["directions"])
    thresholds = [
        Threshold("exact_all", result["overall"]["exact"], 90, at_least=True),
        Threshold("chrf_all", result["overall"]["chrf"], 95, at_least=True),
        Threshold("exact_worst_direction", worst, 80, at_least=True),
        Threshold("checkpoint_mb", round(checkpoint_bytes / 1e6, 2), 40),
    ]
    consistency = result["consistency"]
    if None not in consistency.values():
        gap = consistency["with_english"] - consistency["without_english"]
        thresholds.append(Threshold("english_gap", round(gap, 2), 3))
    if result["unseen_voices"]["n"]:
        exact = result["unseen_voices"]["exact"]
        thresholds.append(Threshold("exact_unseen_voices", exact, 75, at_least=True))
    return thresholds


def grouped(
    predictions: Iterable[Prediction], key: Callable[[Prediction], Any]
) -> dict[Any, list[Prediction]]:
    """Group predictions by a key, sorted by it."""
    groups: dict[Any, list[Prediction]] = {}
    for prediction in predictions:
        groups.setdefault(key(prediction), []).append(prediction)
    return dict(sorted(groups.items()))


def _percent(matches: Iterable[bool]) -> float:
    return round(100 * statistics.mean(matches), 2)


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "0", text)
