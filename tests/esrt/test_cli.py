"""Errors of commands: one line, and a stable exit code."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import esrt
from esrt.bundled import REPOSITORY
from esrt.cli import exit_on_error
from esrt.errors import AudioError, CheckFailed, EsrtError, ServerError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AudioError("It is silent.", "Speak."), 2),
        (CheckFailed("It differs.", "Look."), 1),
        (ServerError("It is\ndown.", "Wait."), 3),
    ],
)
def test_a_deliberate_error_is_one_line(
    error: EsrtError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_error():
        raise error
    assert ended.value.code == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {' '.join(str(error).split())}\n"


def test_control_characters_are_removed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), exit_on_error():
        raise CheckFailed("\x1b[2J is unexpected.", "Look.")
    assert capsys.readouterr().err == "error: [2J is unexpected. Look.\n"


def test_file_system_errors_have_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_error():
        (tmp_path / "no" / "file").write_text("")
    assert ended.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_other_exceptions_are_not_caught() -> None:
    with pytest.raises(ZeroDivisionError), exit_on_error():
        1 / 0  # noqa: B018


def test_errors_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(AudioError("It is silent.", "Speak.")))
    assert (type(error), error.cause, error.remedy) == (AudioError, "It is silent.", "Speak.")


COMMANDS = ("-m edge_runtime --help", "-m cloud_vllm settings", "-m export.doctor --version",
            "-m export --help", "-m cloud_vllm")  # fmt: skip
CLOSED = "error: Standard output is closed. Redirect it to a file, or to /dev/null.\n"
FULL = "error: Standard output or a file cannot be used: No space left on device. "


def shell(command: str, redirection: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} {command} {redirection}"],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_closed_standard_output_is_one_line(command: str) -> None:
    done = shell(command, ">&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", CLOSED)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", COMMANDS[:4])
def test_full_standard_output_is_one_line(command: str, unbuffered: str) -> None:
    done = shell(command, ">/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2
    assert done.stderr.startswith(FULL)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("redirection", "code"),
    [(">&- 2>&-", 2), (">/dev/full 2>/dev/full", 2), ("2>&-", 0), ("2>/dev/full", 0), ("<&-", 0)],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_other_streams_that_cannot_be_used(redirection: str, code: int, unbuffered: str) -> None:
    done = shell("-m edge_runtime --version", redirection, PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout == (f"esrt {esrt.__version__}\n" if code == 0 else "")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_an_error_without_a_place_for_its_line(redirection: str) -> None:
    done = shell("-m cloud_vllm --port 70000", redirection)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_reader_that_ends_early_is_no_error() -> None:
    done = shell("-m cloud_vllm settings", "| true", PYTHONUNBUFFERED="")
    assert done.returncode in (0, 1)  # 0 if all was written before
    assert done.stderr == ""
