"""Quality, thresholds, table and plot of the bandwidth benchmark."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoTokenizer, Gemma3ForCausalLM

from benchmarks.bandwidth.audio_codecs import through_opus
from benchmarks.bandwidth.measures import (
    SECONDS,
)
from benchmarks.bandwidth.sender import OPUS_KBPS, EdgeThroughPackets, Sender
from benchmarks.options import DEFAULT_CODEC
from esrt.benchmark_report import BenchmarkReport, Threshold
from esrt.checkpoint import Checkpoint
from esrt.wire import Codec
from training.corpus.build import Corpus
from training.plots import save
from training.scoring import score
from training.translation import translate

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


def print_report(record: BenchmarkReport) -> None:
    """Print the rates, the scores and the thresholds."""
    table = Table("sent", *(f"{seconds} s" for seconds in SECONDS), "chrF", "exact %")
    for name in dict.fromkeys(row["sent"] for row in record.rows):
        rates = [f"{row['kbps']:.2f}" for row in record.rows if row["sent"] == name]
        scores = record.more["quality"].get(name, {})
        table.add_row(name, *rates, str(scores.get("chrf", "")), str(scores.get("exact", "")))
    Console().print("kbit/s of whole HTTP requests, by length of the speech", table)
    for bar in record.bars:
        print(bar)
