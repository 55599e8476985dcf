"""Errors of commands: one line, and a stable exit code."""

import pickle
from pathlib import Path

import pytest

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
