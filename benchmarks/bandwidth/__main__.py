"""Bandwidth of speech, and loss of quality: ``python -m benchmarks.bandwidth --json FILE``.

Bytes are those of whole HTTP requests, as the client sends them, for speech of several lengths from
the bundled clips. Quality is the translation of the test split: from the features that each codec
transmits, and, for the audio codecs, from their decoded audio by the unsplit model.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoTokenizer, Gemma3ForCausalLM

from benchmarks.bandwidth.audio_codecs import through_opus
from benchmarks.bandwidth.measures import (
    PART_SECONDS,
    SAMPLES,
    SECONDS,
    codec_times,
    coders,
    request_overhead,
    sizes,
)
from benchmarks.bandwidth.sender import OPUS_KBPS, EdgeThroughPackets, Sender
from benchmarks.options import DEFAULT_CODEC, CheckpointOption, JsonOption, ReportOption
from benchmarks.speech import read_clips
from esrt import bundled
from esrt.benchmark_report import BenchmarkReport, Threshold
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.cli import exit_on_error
from esrt.wire import Codec
from training.corpus.build import CORPUS, Corpus, load
from training.evaluate import translate
from training.plots import save
from training.scoring import score

STRETCH = Codec.KLT_LOW
DEFAULT_KBPS, STRETCH_KBPS, LOSS, CODEC_MS = 4.0, 1.5, 0.5, 2.0
# Numbers of final tokens that are dropped, to measure their contribution.
UNSENT = (1, 2)
TOOLS = ("torch", "soundfile", "constriction", "sacrebleu")


def quality(
    checkpoint: Checkpoint, sender: Sender, corpus: Corpus, directions: int | None
) -> dict[str, dict[str, Any]]:
    """Scores of a corpus split by codec; ``pcm`` is the unsplit model on the audio itself."""
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    run = partial(translate, decoder=decoder, tokenizer=tokenizer, corpus=corpus)
    runs: dict[str, Callable[[], Any]] = {"pcm": partial(run, sender.edge, directions=directions)}
    for codec in Codec:
        runs[str(codec)] = partial(run, EdgeThroughPackets(sender, codec), directions=directions)
    for unsent in UNSENT:
        edge = EdgeThroughPackets(sender, DEFAULT_CODEC, unsent)
        runs[f"{DEFAULT_CODEC}, {unsent} unsent"] = partial(run, edge, directions=directions)
    for kbps in OPUS_KBPS:
        decoded = partial(through_opus, kbps)
        runs[f"opus {kbps}"] = partial(run, sender.edge, directions=directions, sound=decoded)
    items = track(runs.items(), "translating", total=len(runs))
    return {name: score(translated()) for name, translated in items}


def bars(
    rows: list[dict[str, Any]],
    scores: dict[str, dict[str, Any]],
    times: dict[str, dict[str, float]],
) -> list[Threshold]:
    """Rates at 5 s and longer, the loss of quality, and the times of the default codec."""
    thresholds = []
    for name, codec, kbps in (
        ("default", DEFAULT_CODEC, DEFAULT_KBPS),
        ("stretch", STRETCH, STRETCH_KBPS),
    ):
        rates = [row["kbps"] for row in rows if row["sent"] == codec and row["seconds"] >= 5]
        thresholds.append(Threshold(f"{name}_kbps_5s", max(rates), kbps))
        if scores:
            loss = round(scores["pcm"]["chrf"] - scores[codec]["chrf"], 2)
            thresholds.append(Threshold(f"{name}_chrf_loss", loss, LOSS))
    thresholds.append(Threshold("encode_ms", times[DEFAULT_CODEC]["encode"], CODEC_MS))
    thresholds.append(Threshold("decode_ms", times[DEFAULT_CODEC]["decode"], CODEC_MS))
    return thresholds


def plot(record: BenchmarkReport, path: Path, beside: Path | None = None) -> None:
    """Draw quality over rate at 5 s as a PNG.

    ``beside`` is the report of another model, whose codecs are drawn too.
    """
    codecs = [str(codec) for codec in Codec]
    own = record.rows, record.more["quality"]
    lines = [
        (*own, "features", codecs, 8),
        (*own, "Opus, then the unsplit model", [f"opus {kbps}" for kbps in OPUS_KBPS], -14),
        (*own, "16-bit PCM", ["pcm"], 8),
    ]
    if beside:
        other = json.loads(beside.read_text("utf-8"))
        lines.append((other["rows"], other["quality"], f"features, {beside.stem}", codecs, 8))
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for rows, scores, label, names, above in lines:
        rates = {row["sent"]: row["kbps"] for row in rows if row["seconds"] == 5}
        points = sorted((rates[name], scores[name]["chrf"], name) for name in names)
        axes.plot([rate for rate, *_ in points], [chrf for _, chrf, _ in points], "o-", label=label)
        for rate, chrf, text in points:
            axes.annotate(
                text, (rate, chrf), textcoords="offset points", xytext=(-6, above), fontsize=8
            )
    axes.set_xscale("log")
    axes.set_xlabel("kbit/s of whole requests, 5 s of speech")
    axes.set_ylabel("chrF of the translation")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    save(figure, path)


def main(
    json_file: JsonOption,
    report: ReportOption = None,
    beside: Annotated[
        Path | None, typer.Option(help="JSON file of another model, to plot its codecs too.")
    ] = None,
    checkpoint: CheckpointOption = bundled.CHECKPOINT,
    corpus: Annotated[Path, typer.Option(help="Folder of the corpus.")] = CORPUS,
    directions: Annotated[
        int, typer.Option(min=1, help="Languages that each utterance is translated into.")
    ] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few samples of speech, and no quality.")
    ] = False,
) -> None:
    """Measure bytes, time and quality of every codec, compared with PCM, FLAC and Opus."""
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
    _print(record)


def _print(record: BenchmarkReport) -> None:
    table = Table("sent", *(f"{seconds} s" for seconds in SECONDS), "chrF", "exact %")
    for name in dict.fromkeys(row["sent"] for row in record.rows):
        rates = [f"{row['kbps']:.2f}" for row in record.rows if row["sent"] == name]
        scores = record.more["quality"].get(name, {})
        table.add_row(name, *rates, str(scores.get("chrf", "")), str(scores.get("exact", "")))
    Console().print("kbit/s of whole HTTP requests, by length of the speech", table)
    for bar in record.bars:
        print(bar)


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
