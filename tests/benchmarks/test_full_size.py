"""Benchmark of the exports, on the smallest configuration."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import full_size
from esrt.bundled import REPOSITORY
from export.backends import kinds


def test_a_quick_run_exports_and_measures(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    # One kind in fp32: an export to int8 takes twice as long.
    command = [sys.executable, "-m", "benchmarks.full_size", "--quick", "--precision", "fp32"]
    command += ["--kind", "onnx", "--json", str(out), "--folder", str(tmp_path / "artifacts")]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    record = json.loads(out.read_text("utf-8"))
    (row,) = record["rows"]
    assert row["kind"] == "onnx"
    assert row["export_s"] > 0
    assert 0.2 < row["export_peak_gb"] < 24
    assert 8 < row["size_mb"] < 20
    assert row["cosine_min"] > 0.9999
    assert row["latency_s"] >= 0
    assert {bar["name"]: bar["holds"] for bar in record["bars"]} == {"export_peak_gb": True}
    assert "| onnx | fp32 |" in done.stdout


def test_an_unknown_kind_is_refused_before_any_export(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.full_size", "--kind", "x", "--json"]
    done = subprocess.run(
        [*command, str(tmp_path / "figures.json")],
        cwd=REPOSITORY, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "No export backend makes artifacts of kind 'x'." in done.stderr


@pytest.mark.parametrize(("size_mb", "passed"), [(749.0, True), (751.0, False)])
def test_the_size_of_the_int8_program_is_held_to_its_bound(size_mb: float, passed: bool) -> None:
    row = {"kind": "executorch", "precision": "int8", "export_peak_gb": 3.0, "size_mb": size_mb}
    assert {bar.name: bar.passed for bar in full_size.bars([row])} == {
        "export_peak_gb": True,
        "pte_int8_mb": passed,
    }


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
