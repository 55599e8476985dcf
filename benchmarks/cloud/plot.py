"""Plots of throughput, of latency under open load, and of memory over time."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cloud.load import QUANTILES
from benchmarks.cloud.runs import UNBATCHED
from esrt.benchmark_report import BenchmarkReport
from training.plots import save


def draw(record: BenchmarkReport, path: Path) -> None:
    """Draw a panel for each kind of measurement in the report, as a PNG."""
    soak = record.more.get("soak")
    panels = 3 if soak else 2
    figure = Figure(figsize=(4.6 * panels, 4))
    axes = figure.subplots(1, panels)
    closed = [row for row in record.rows if row["load"] == "closed"]
    _throughput(
        axes[0], [row for row in closed if row["concurrency"] > 1 or row["system"] in UNBATCHED]
    )
    _latency(axes[1], [row for row in record.rows if row["load"] == "open"])
    if soak:
        _memory(axes[2], soak["samples"])
    figure.tight_layout()
    save(figure, path)


def _throughput(axes: Axes, rows: list[dict[str, Any]]) -> None:
    names = [f"{row['system']}, {row['concurrency']}" for row in rows]
    bars = axes.barh(names, [row["tokens_per_s"] for row in rows])
    axes.bar_label(bars, fmt="%.0f", padding=2)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_title("closed load: requests at once")
    axes.set_xlabel("tokens per second")


def _latency(axes: Axes, rows: list[dict[str, Any]]) -> None:
    rates = [row["rate"] for row in rows]
    for quantile in QUANTILES:
        label = f"answer p{quantile}"
        axes.plot(rates, [row[f"latency_ms_p{quantile}"] for row in rows], marker="o", label=label)
    first = [row["first_token_ms_p50"] for row in rows]
    axes.plot(rates, first, marker="o", linestyle="--", label="first text p50")
    axes.set_yscale("log")
    axes.set_title("open load")
    axes.set_xlabel("requests per second")
    axes.set_ylabel("ms")
    axes.legend(fontsize="small")


def _memory(axes: Axes, samples: list[dict[str, float]]) -> None:
    minutes = [sample["s"] / 60 for sample in samples]
    for name in ("gateway", "engine"):
        axes.plot(minutes, [sample[name] / 2**20 for sample in samples], label=name)
    axes.set_ylim(bottom=0)
    axes.set_title("mixed load")
    axes.set_xlabel("minutes")
    axes.set_ylabel("MiB resident")
    axes.legend(fontsize="small")
