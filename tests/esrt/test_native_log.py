"""Output of native libraries, which write to the descriptor of stderr."""

import os
import subprocess
import sys

import pytest

from esrt.native_log import captured_native_log, discard_native_log


def test_the_log_is_captured(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_native_log() as log:
        assert log() == b""
        os.write(2, b"a note")
        assert log() == b"a note"
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_a_long_log_waits_for_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_native_log() as log:
        for _ in range(100):
            try:
                os.write(2, bytes(4096))
            except BlockingIOError:
                break
        assert log()
    assert capfd.readouterr().err == ""


def test_the_log_is_discarded(capfd: pytest.CaptureFixture[str]) -> None:
    with discard_native_log():
        os.write(2, b"a note")
    assert capfd.readouterr().err == ""


def test_a_process_without_stderr() -> None:
    code = (
        "import sys\n"
        "from esrt.native_log import captured_native_log\n"
        "with captured_native_log() as log: print(sys.stderr, log())"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -c "$0" 2>&-', code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "None b''\n"
