"""Errors of the command line: one line and an exit code."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from esrt.bundled import REPOSITORY
from esrt.checkpoint import Checkpoint


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloud_vllm", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in line


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    folder = str(tmp_path / "none")
    _assert_refused(_run("--checkpoint", folder), f"No checkpoint in {folder}", "models/esrt-nano")


@pytest.mark.parametrize(
    ("option", "value"), [("--engine", "llama"), ("--port", "-1"), ("--port", "65536")]
)
def test_an_invalid_setting(option: str, value: str) -> None:
    _assert_refused(_run(option, value), option.removeprefix("--"), "See --help")


def test_a_port_in_use(checkpoint: Checkpoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = "--checkpoint", str(checkpoint.folder), "--engine", "transformers"
        _assert_refused(_run(*arguments, "--port", port), port, "Choose another --port")


def test_no_keys_beyond_loopback(checkpoint: Checkpoint) -> None:
    arguments = "--checkpoint", str(checkpoint.folder), "--host", "0.0.0.0", "--port", "0"
    _assert_refused(_run(*arguments), "0.0.0.0", "--key-file", "--allow-anonymous")


def test_a_missing_key_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    missing = str(tmp_path / "keys.json")
    arguments = "--checkpoint", str(checkpoint.folder), "--key-file", missing
    _assert_refused(_run(*arguments), missing, "keys create")


def test_a_certificate_without_its_key(tmp_path: Path) -> None:
    _assert_refused(_run("--tls-certificate", str(tmp_path / "chain.pem")), "belong together")


def test_help_lists_the_options_without_importing_torch() -> None:
    code = "import cloud_vllm.__main__, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
    text = _run("--help").stdout
    for option in ("--checkpoint", "--engine", "--host", "--port", "--key-file", "keys"):
        assert option in text


def test_wrong_settings_are_reported_without_importing_torch() -> None:
    code = """
import sys
from cloud_vllm.__main__ import app
try:
    app(["--host", "0.0.0.0"])
except SystemExit as end:
    assert end.code == 2
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
