"""Plots: scores by direction, and the curves of a training run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from esrt.files import replace_file


def heat_map(directions: list[dict[str, Any]], path: Path) -> None:
    """Plot exact match in percent, source by target, as a PNG."""
    codes = sorted({row["src"] for row in directions} | {row["tgt"] for row in directions})
    grid = np.full((len(codes), len(codes)), np.nan)
    for row in directions:
        grid[codes.index(row["src"]), codes.index(row["tgt"])] = row["exact"]
    side = 1.5 + 0.45 * len(codes)
    figure = Figure(figsize=(side + 1, side))
    axes = figure.subplots()
    image = axes.imshow(grid, cmap="viridis", vmin=0, vmax=100)
    for (source, target), value in np.ndenumerate(grid):
        if not np.isnan(value):
            shade = "black" if value > 60 else "white"
            axes.text(target, source, f"{value:.0f}", ha="center", va="center", color=shade, size=8)
    axes.set_xticks(range(len(codes)), codes, rotation=90)
    axes.set_yticks(range(len(codes)), codes)
    axes.set_xlabel("to")
    axes.set_ylabel("from")
    axes.set_title("exact translations, %")
    figure.colorbar(image, shrink=0.8)
    save(figure, path)


def curves(log: Path, path: Path) -> None:
    """Plot a run's losses and validation scores over minutes, as a PNG."""
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    minutes = [row["seconds"] / 60 for row in rows]
    figure = Figure(figsize=(7, 6))
    top, bottom = figure.subplots(2, 1, sharex=True)
    for name in ("text", "letters", "pieces", "voice"):
        if any(name in row for row in rows):  # stages without speech have the text loss only
            losses = [row.get(name, np.nan) for row in rows]
            top.semilogy(minutes, losses, marker=".", label=name)
    top.set_ylabel("loss, nats per symbol (voice: share of variance)")
    for name in ("transcript_exact", "exact"):
        bottom.plot(minutes, [row[name] for row in rows], marker=".", label=name)
    bottom.set_ylabel("validation, %")
    bottom.set_xlabel("minutes of training")
    for before, after, minute in zip(rows, rows[1:], minutes[1:], strict=False):
        if before["tasks"] != after["tasks"]:
            for axes in (top, bottom):
                axes.axvline(minute, color="gray", linestyle=":")
    for axes in (top, bottom):
        axes.legend()
        axes.grid(alpha=0.3)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120, bbox_inches="tight")
