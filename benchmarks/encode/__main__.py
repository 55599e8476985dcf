"""Encoding time of each backend, and loss by int8: ``python -m benchmarks.encode --json FILE``.

The backends take turns on the same input with the same number of threads (`benchmarks.timing`).
Quality is measured on the model's test split, translated from the features of each backend.
"""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import (
    CheckpointOption,
    ClipsOption,
    JsonOption,
    ReportOption,
    RoundsOption,
    ThreadsOption,
)
from esrt import bundled
from esrt.benchmark_report import BenchmarkReport
from esrt.cli import VersionOption, run
from training.corpus.build import CORPUS, load
from training.corpus.clips import load_sentences


def main(
    json_file: JsonOption,
    report: ReportOption = None,
    checkpoint: CheckpointOption = bundled.CHECKPOINT,
    clips: ClipsOption = None,
    threads: ThreadsOption = 2,
    rounds: RoundsOption = 41,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Few rounds in torch and int8, on 3 and 10 s; no quality."),
    ] = False,
    version: VersionOption = False,
) -> None:
    """Measure a model at 3, 10 and 30 s, whisper-small's size at 30 s, and the loss by int8."""
    # Imported here: torch takes seconds, which --help need not.
    from benchmarks.encode.measures import (
        TOOLS,
        VARIANTS,
        backends,
        bars,
        bind_input,
        cases,
        measure_small,
        plot,
        print_report,
        quality,
    )
    from benchmarks.speech import log_mel_speech
    from benchmarks.timing import medians
    from esrt.checkpoint import open_checkpoint

    opened, folder = open_checkpoint(checkpoint), Path("build/benchmarks/encode")
    rounds, variants = (3, ("int8",)) if quick else (rounds, VARIANTS)
    runs, failed = backends(opened, folder, threads, variants)
    measured = {
        case: medians(bind_input(runs, log_mel_speech(opened.config, seconds)), rounds)
        for case, seconds in cases(opened.config).items()
    }
    scores, length = {}, None
    if not quick:
        held_out = load_sentences(clips / "test") if clips else load(CORPUS, "test")
        scores = quality(runs, opened, held_out.in_languages(opened.config.languages))
        measured["small_30s"], length, more = measure_small(folder, threads, max(3, rounds // 8))
        failed |= more
    times = {case: ms for case, (ms, _) in measured.items()}
    record = BenchmarkReport(
        settings={"threads": threads, "rounds": rounds, "fingerprint": opened.fingerprint},
        rows=[
            {
                "case": case,
                "backend": name,
                "ms": round(value, 3),
                "first_ms": round(first[name], 3),
            }
            for case, (ms, first) in measured.items()
            for name, value in ms.items()
        ],
        bars=bars(times, length, scores),
        tools=TOOLS,
        more={"quality": scores, "refused": failed},
    )
    record.write(json_file)
    if report:
        plot(times, report / "encode.png")
    print_report(record)


if __name__ == "__main__":
    run(main)
