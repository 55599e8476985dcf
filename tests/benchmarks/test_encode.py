"""Encoding benchmark: a quick run."""

import json
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.encode.measures import cases
from esrt.bundled import REPOSITORY
from esrt.checkpoint import Checkpoint
from esrt.config import named_config


def test_cases_are_as_long_as_the_model_s_input_allows() -> None:
    assert cases(named_config("esrt-nano")) == {"nano_3s": 3, "nano_10s": 10}
    assert list(cases(named_config("esrt-mini"))) == ["mini_3s", "mini_10s", "mini_30s"]


def test_quick_run_writes_the_report(lively: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "encode.json"
    command = [sys.executable, "-m", "benchmarks.encode", "--quick", "--json", str(out)]
    command += ["--checkpoint", str(lively.folder), "--report", str(tmp_path / "plots")]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert done.stderr == ""  # no warnings of libraries
    assert re.search(r"^et_int8_over_ort_int8_tiny_3s .*: (met|missed)$", done.stdout, re.MULTILINE)
    record = json.loads(out.read_text("utf-8"))
    assert {"machine", "versions", "commit", "settings", "rows", "bars"} <= set(record)
    backends = ["torch fp32", "executorch int8", "onnxruntime int8"]
    ms = {(row["case"], row["backend"]): row["ms"] for row in record["rows"]}
    assert list(ms) == [("tiny_3s", name) for name in backends]
    assert all(value > 0 for value in ms.values())
    assert (tmp_path / "plots" / "encode.png").read_bytes().startswith(b"\x89PNG")
    assert {bar["name"] for bar in record["bars"]} == {
        f"et_int8_over_{other}_tiny_3s" for other in ("ort_int8", "eager_fp32")
    }
    assert all(bar["holds"] == (bar["value"] <= bar["bound"]) for bar in record["bars"])
