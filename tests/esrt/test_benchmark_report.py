"""Benchmark reports: thresholds, and the JSON file with machine and versions."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from esrt.benchmark_report import BenchmarkReport, Threshold, commit, machine


@pytest.mark.parametrize(
    ("value", "bound", "at_least", "passed"),
    [
        (1.0, 1.0, False, True),
        (1.1, 1.0, False, False),
        (0.9, 1.0, False, True),
        (1.0, 1.0, True, True),
        (1.1, 1.0, True, True),
        (0.9, 1.0, True, False),
        (float("nan"), 1.0, False, False),
        (float("nan"), 1.0, True, False),
    ],
)
def test_thresholds(value: float, bound: float, at_least: bool, passed: bool) -> None:
    assert Threshold("x", value, bound, at_least).passed is passed


def report(**more: object) -> BenchmarkReport:
    bars = [Threshold("slow", 3, 2), Threshold("good", 91, 90, at_least=True)]
    return BenchmarkReport(
        {"split": "test"}, [{"name": "é", "value": 1}], bars, ("numpy",), dict(more)
    )


def test_a_report_has_machine_versions_and_rows(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "one.json"
    report(overall={"n": 3}).write(path)
    found = json.loads(path.read_text("utf-8"))
    assert found["settings"] == {"split": "test"}
    assert found["rows"] == [{"name": "é", "value": 1}]
    assert found["overall"] == {"n": 3}
    assert found["versions"] == {"numpy": version("numpy")}
    assert found["machine"] == machine()
    assert found["commit"] == commit()
    assert found["bars"] == [
        {"name": "slow", "value": 3, "bound": 2, "at_least": False, "holds": False},
        {"name": "good", "value": 91, "bound": 90, "at_least": True, "holds": True},
    ]


def test_a_failed_write_keeps_the_former_report(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    report().write(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        report(unwritable=object()).write(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["one.json"]


def test_the_machine_is_described() -> None:
    assert machine()["cores"] >= 1
    assert all(machine()[key] for key in ("processor", "architecture", "system"))


def test_the_commit_marks_changed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        command = ["git", *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() is None
    git("init", "--quiet")
    file = tmp_path / "file"
    file.write_text("one")
    git("add", "file")
    git("commit", "--quiet", "--no-gpg-sign", "-m", "one")
    assert commit() == git("rev-parse", "--short", "HEAD")
    file.write_text("two")
    assert commit() == git("rev-parse", "--short", "HEAD") + "+"
