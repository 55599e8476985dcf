"""Benchmark of the exports, on the smallest configuration."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import full_size
from esrt.bundled import REPOSITORY
from esrt.errors import CheckFailed
from export.backends import kinds


def test_every_target_is_exported_and_measured(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.full_size", "--quick", "--json", str(out)]
    command += ["--folder", str(tmp_path / "artifacts")]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    record = json.loads(out.read_text("utf-8"))
    assert [row["kind"] for row in record["rows"]] == list(kinds())
    for row in record["rows"]:
        assert row["export_s"] > 0
        assert 0.2 < row["export_peak_gb"] < 24
        assert 2 < row["size_mb"] < 10
        assert row["cosine_min"] > 0.995
        assert (row["latency_s"] is None) == (row["kind"] == "coreml")
    assert {bar["name"]: bar["holds"] for bar in record["bars"]} == {
        "export_peak_gb": True,
        "pte_int8_mb": True,
    }
    assert "| coreml | int8 |" in done.stdout


def test_an_export_that_fails_ends_the_measurement() -> None:
    with pytest.raises(CheckFailed, match="ended with exit code 3"):
        full_size.timed([sys.executable, "-c", "raise SystemExit(3)"])
