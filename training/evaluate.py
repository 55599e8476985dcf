"""Evaluates a checkpoint on a held-out split: ``python -m training.evaluate --json FILE``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from esrt import bundled
from esrt.benchmark_report import BenchmarkReport
from esrt.cli import VersionOption, run
from esrt.files import refuse_input
from training.corpus.build import CORPUS, load, sentences


class HeldOutSplit(StrEnum):
    """Held-out splits."""

    TEST = "test"
    VALIDATION = "validation"


def main(
    checkpoint: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Checkpoint folder.", show_default="the bundled esrt-nano"
        ),
    ] = bundled.CHECKPOINT,
    corpus: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the corpus.")] = CORPUS,
    split: Annotated[HeldOutSplit, typer.Option(help="Held-out split.")] = HeldOutSplit.TEST,
    contaminated: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of held-out sentences in English, one a line, that the initial weights were"
            " trained on.",
        ),
    ] = None,
    states: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Cached states of a corpus of many voices (training.cache); scores by engine."
            " Options of other corpora have no effect.",
        ),
    ] = None,
    clips: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With --states: clips of the corpus, whose open recordings Whisper's own decoder"
            " transcribes as well, in two seconds each.",
        ),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --states: write all answers and their scores."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the scores to this file.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plot exact match, source by target, to this PNG file."),
    ] = None,
    version: VersionOption = False,
) -> None:
    """Translate a held-out split in every direction; print, write and plot the scores."""
    if contaminated:
        for out in filter(None, (json_file, plot)):
            refuse_input(out, contaminated)
    # Imported here: torch takes seconds, which --help need not.
    from esrt.checkpoint import open_checkpoint
    from training.engine_evaluation import evaluate_states
    from training.plots import heat_map
    from training.scoring import bars
    from training.translation import (
        evaluate,
        print_report,
        read_contaminated,
    )

    opened = open_checkpoint(checkpoint)
    if states:
        evaluate_states(opened, states, json_file, answers, clips)
        return
    whole = load(corpus, split)
    contaminated_texts = read_contaminated(contaminated, whole) if contaminated else set()
    trained = {text for sentence in sentences("train") for text in sentence.texts.values()}
    held_out = whole.in_languages(opened.config.languages)
    result = evaluate(opened, held_out, trained, contaminated_texts)
    print_report(result)
    if plot:
        heat_map(result["directions"], plot)
    if json_file:
        weights = sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors"))
        BenchmarkReport(
            settings={
                "model": opened.config.name,
                "fingerprint": opened.fingerprint,
                "split": split,
                "utterances": len(held_out.examples),
            },
            rows=result["directions"],
            bars=bars(result, weights),
            tools=("torch", "transformers", "sacrebleu", "jiwer"),
            more={"languages": list(opened.config.languages)}
            | {name: value for name, value in result.items() if name != "directions"},
        ).write(json_file)


if __name__ == "__main__":
    run(main)
