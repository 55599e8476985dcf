"""Plots: complete PNG files that show the given scores."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from numpy.typing import NDArray

from training.plots import curves, heat_map


def pixels(path: Path) -> NDArray[np.float32]:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    found: NDArray[np.float32] = image.imread(path)
    assert min(found.shape[:2]) > 100
    return found


def directions(exact: float) -> list[dict[str, object]]:
    codes = ("eng", "deu", "kor")
    return [{"src": a, "tgt": b, "exact": exact} for a in codes for b in codes if a != b]


def log(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def row(seconds: float, tasks: str, **losses: float) -> dict[str, object]:
    return {
        "step": 1,
        "seconds": seconds,
        "tasks": tasks,
        "text": 2.0,
        "transcript_exact": 3.0,
        "exact": 1.0,
        **losses,
    }


def test_a_heat_map_shows_the_scores(tmp_path: Path) -> None:
    paths = tmp_path / "new" / "good.png", tmp_path / "bad.png"
    for path, exact in zip(paths, (97.0, 12.0), strict=True):
        heat_map(directions(exact), path)
    good, bad = map(pixels, paths)
    assert good.shape == bad.shape
    assert not np.array_equal(good, bad)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["good.png"]


def test_missing_directions_stay_empty(tmp_path: Path) -> None:
    heat_map(directions(50.0)[:2], tmp_path / "some.png")
    pixels(tmp_path / "some.png")


@pytest.mark.parametrize(
    "rows",
    [
        [row(60, "asr 1", letters=3.0, pieces=4.0), row(120, "srt 1", letters=1.0, pieces=2.0)],
        [row(60, "srt 1")],
        [row(60, "asr 1", letters=3.0, pieces=4.0), row(120, "smt 1")],
        [row(60, "smt 1"), row(120, "srt 1", letters=3.0, pieces=4.0)],
    ],
    ids=["two stages", "no auxiliary losses", "text at the end", "text at first"],
)
def test_curves_are_drawn(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    curves(log(tmp_path / "log.jsonl", rows), tmp_path / "curves.png")
    pixels(tmp_path / "curves.png")
