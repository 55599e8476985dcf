"""The encoding benchmark: it runs, and writes what every benchmark writes."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.record import Bar

ROOT = Path(__file__).parents[2]


def test_it_writes_the_record(tmp_path: Path) -> None:
    out = tmp_path / "figures" / "encode.json"
    command = [sys.executable, "-m", "benchmarks.encode", "--quick", "--json", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    record = json.loads(out.read_text("utf-8"))
    assert set(record) == {"machine", "versions", "commit", "settings", "rows", "bars"}
    assert [row["backend"] for row in record["rows"]] == [
        "torch fp32",
        "executorch fp32",
        "executorch int8",
        "onnxruntime fp32",
        "onnxruntime int8",
    ]
    assert all(0 < row["nano_3s_ms"] < row["nano_10s_ms"] for row in record["rows"])
    assert {bar["name"] for bar in record["bars"]} == {
        f"et_int8_over_{other}_nano_{seconds}s"
        for other in ("ort_int8", "eager_fp32")
        for seconds in (3, 10)
    }
    assert all(bar["holds"] == (bar["value"] <= bar["bound"]) for bar in record["bars"])


def test_a_figure_that_is_none_does_not_hold() -> None:
    assert Bar("x", 1.0, 1.0).holds
    assert not Bar("x", 1.1, 1.0).holds
    assert not Bar("x", float("nan"), 1.0).holds
