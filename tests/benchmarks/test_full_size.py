"""Benchmark of the exports, on the smallest configuration."""

import json
import subprocess
import sys
from pathlib import Path

from esrt.bundled import REPOSITORY
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


def test_an_export_that_fails_ends_the_measurement(tmp_path: Path) -> None:
    kind = kinds()[0]
    (tmp_path / f"esrt-nano-{kind}-int8").write_text("in the way")
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.full_size", "--model", "esrt-nano"]
    command += ["--folder", str(tmp_path), "--json", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"to_{kind}.py" in done.stderr
    assert not out.exists()
