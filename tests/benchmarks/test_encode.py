"""Encoding benchmark: a quick run."""

import json
import re
import subprocess
import sys
from pathlib import Path

from esrt.bundled import REPOSITORY


def test_quick_run_writes_the_report(tmp_path: Path) -> None:
    out = tmp_path / "encode.json"
    command = [sys.executable, "-m", "benchmarks.encode", "--quick", "--json", str(out)]
    command += ["--report", str(tmp_path / "plots")]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert done.stderr == ""  # no warnings of libraries
    assert re.search(r"^et_int8_over_ort_int8_nano_3s .*: (met|missed)$", done.stdout, re.MULTILINE)
    record = json.loads(out.read_text("utf-8"))
    assert {"machine", "versions", "commit", "settings", "rows", "bars"} <= set(record)
    backends = ["torch fp32", "executorch int8", "onnxruntime int8"]
    ms = {(row["case"], row["backend"]): row["ms"] for row in record["rows"]}
    assert list(ms) == [(f"nano_{seconds}s", name) for seconds in (3, 10) for name in backends]
    assert all(0 < ms["nano_3s", name] < ms["nano_10s", name] for name in backends)
    assert (tmp_path / "plots" / "encode.png").read_bytes().startswith(b"\x89PNG")
    assert {bar["name"] for bar in record["bars"]} == {
        f"et_int8_over_{other}_nano_{seconds}s"
        for other in ("ort_int8", "eager_fp32")
        for seconds in (3, 10)
    }
    assert all(bar["holds"] == (bar["value"] <= bar["bound"]) for bar in record["bars"])
