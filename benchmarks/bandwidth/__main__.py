"""Bandwidth of speech, and loss of quality: ``python -m benchmarks.bandwidth --json FILE``.

Bytes are those of whole HTTP requests, as the client sends them, for speech of several lengths from
the bundled clips. Quality is the translation of the test split: from the features that each codec
transmits, and, for the audio codecs, from their decoded audio by the unsplit model.
"""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import CheckpointOption, JsonOption, ReportOption
from esrt import bundled
from esrt.benchmark_report import BenchmarkReport
from esrt.cli import VersionOption, run
from training.corpus.build import CORPUS, load


def main(
    json_file: JsonOption,
    report: ReportOption = None,
    beside: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON file of another model, to plot its codecs too."),
    ] = None,
    checkpoint: CheckpointOption = bundled.CHECKPOINT,
    corpus: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the corpus.")] = CORPUS,
    directions: Annotated[
        int,
        typer.Option(
            min=1, metavar="COUNT", help="Languages that each utterance is translated into."
        ),
    ] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few samples of speech, and no quality.")
    ] = False,
    version: VersionOption = False,
) -> None:
    """Measure bytes, time and quality of every codec, compared with PCM, FLAC and Opus."""
    # Imported here: torch takes seconds, which --help need not.
    from benchmarks.bandwidth.measures import (
        PART_SECONDS,
        SAMPLES,
        codec_times,
        coders,
        request_overhead,
        sizes,
    )
    from benchmarks.bandwidth.report import (
        TOOLS,
        bars,
        plot,
        print_report,
        quality,
    )
    from benchmarks.bandwidth.sender import Sender
    from benchmarks.speech import read_clips
    from esrt.checkpoint import open_checkpoint

    opened = open_checkpoint(checkpoint)
    held_out = None if quick else load(corpus, "test").in_languages(opened.config.languages)
    sender, samples, overhead = Sender(opened), 1 if quick else SAMPLES, request_overhead()
    clips = read_clips()
    rows = sizes(sender, clips, samples, overhead)
    times = codec_times(sender, clips, 20 if quick else 200)
    scores = {} if held_out is None else quality(opened, sender, held_out, directions)
    record = BenchmarkReport(
        settings={
            "fingerprint": opened.fingerprint,
            "directions": directions,
            "samples": samples,
            "part_seconds": PART_SECONDS,
            "request_overhead_bytes": overhead,
        },
        rows=rows,
        bars=bars(rows, scores, times),
        tools=TOOLS,
        more={
            "ms": times,
            "coders_bytes_5s": coders(sender, clips, 2 if quick else len(clips)),
            "quality": scores,
        },
    )
    record.write(json_file)
    if report and scores:
        plot(record, report / "bandwidth.png", beside)
    print_report(record)


if __name__ == "__main__":
    run(main)
