"""The whole output of a gateway is a log: that of libraries, and of processes, too."""

import json
import subprocess
import sys
from typing import Any

import pytest

from esrt.bundled import REPOSITORY

PROGRAM = r"""
import logging, os, subprocess, sys, threading, warnings
from cloud_vllm.telemetry import logs

logs.configure(sys.argv[1])
with logs.logged_output():
    logging.getLogger("library").warning("record")
    warnings.warn("outdated")
    print("printed")
    print("part", end=" ", file=sys.stderr)
    print("whole", file=sys.stderr)
    line = "(EngineCore pid=7) %s 11-30 01:25:22 [%s:725] text"
    with logs.logged_processes():
        lines = ["bare", "", line % ("ERROR", "core.py"), line % ("WARNING", "cpu.py")]
        lines += ["Triton is installed, but doesn't include CPU backend. Disabling Triton."]
        lines += ["W1130 09:39:46 12 torch/utils/_pytree.py:630] <enum 'A'> is now supported"]
        lines += ["[W1130 utils.cpp:68] Warning: NUMA binding: Using MEMBIND policy for memory"]
        child = subprocess.Popen(["printf", r"%s\n", *lines])
        trap = subprocess.Popen(["sh", "-c", "kill -INT $$; echo survived"])
        os.write(2, b"from C++\n")
    child.wait(), trap.wait()
    [thread.join(1) for thread in threading.enumerate() if thread.name == "engine-output"]
os.write(2, b"later\n")
"""
EXPECTED = {
    ("warning", "library", "record"),
    ("info", "output", "printed"),
    ("info", "output", "part whole"),
    ("info", "output", "bare"),
    ("info", "output", "survived"),
    ("info", "output", "from C++"),
    ("error", "engine", "EngineCore: text"),
}


def lines(style: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, style]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert done.stdout == ""
    *lines, last = done.stderr.splitlines()
    assert last == "later"  # the process has its own stderr again
    return lines


def test_json() -> None:
    records: list[dict[str, Any]] = [json.loads(line) for line in lines("json")]
    (warning,) = [record for record in records if record["logger"] == "py.warnings"]
    assert "outdated" in warning["message"]
    found = {(record["level"], record["logger"], record["message"]) for record in records}
    assert {record for record in found if record[1] != "py.warnings"} == EXPECTED


@pytest.mark.parametrize("line", ["WARNING library: record", "INFO output: from C++"])
def test_text(line: str) -> None:
    assert line in lines("text")
