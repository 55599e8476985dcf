"""Encoding benchmark: a quick run on a tiny model."""

import json
from pathlib import Path

import pytest

from benchmarks import encode
from tests.tiny_checkpoint import tiny_checkpoint


def test_quick_run_writes_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tiny model takes 4 s at most.
    monkeypatch.setattr(encode, "NANO_SECONDS", (1, 3))
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(tmp_path / "tiny")
    out = tmp_path / "encode.json"
    encode.main(out, tmp_path / "plots", tmp_path / "tiny", quick=True)
    record = json.loads(out.read_text("utf-8"))
    assert {"machine", "versions", "commit", "settings", "rows", "bars"} <= set(record)
    backends = ["torch fp32", "executorch int8", "onnxruntime int8"]
    ms = {(row["case"], row["backend"]): row["ms"] for row in record["rows"]}
    assert list(ms) == [(f"nano_{seconds}s", name) for seconds in (1, 3) for name in backends]
    assert all(value > 0 for value in ms.values())
    assert (tmp_path / "plots" / "encode.png").read_bytes().startswith(b"\x89PNG")
    assert {bar["name"] for bar in record["bars"]} == {
        f"et_int8_over_{other}_nano_{seconds}s"
        for other in ("ort_int8", "eager_fp32")
        for seconds in (1, 3)
    }
    assert all(bar["holds"] == (bar["value"] <= bar["bound"]) for bar in record["bars"])
