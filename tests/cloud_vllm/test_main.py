"""Errors of the command line: one line and an exit code."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esrt.bundled import REPOSITORY
from esrt.checkpoint import Checkpoint

SETTINGS = "See: python -m cloud_vllm settings"


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloud_vllm", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for library in ("pydantic", "Value error", "Input should", "Error parsing"):
        assert library not in result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in line


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    folder = str(tmp_path / "none")
    result = _run("--checkpoint", folder)
    _assert_refused(result, f"No checkpoint in {folder}", "models/esrt-nano")
    assert "Loading" not in result.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--engine", "llama"), ("--port", "-1"), ("--port", "65536"), ("--host", "http://a")],
)
def test_an_invalid_option(option: str, value: str) -> None:
    _assert_refused(_run(option, value), f"{option} is '{value}', expected ", SETTINGS)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ESRT_PORT", "tcp://10.0.0.1:80", ("whole number from 0", "enableServiceLinks: false")),
        ("ESRT_CORS_ORIGINS", "app.example", ("'app.example'", "https://app.example", SETTINGS)),
        ("ESRT_CORS_ORIGINS", "[1", ("'[1'", "separated by commas")),
        ("ESRT_LOG_FORMAT", "yaml", ("json or text",)),
        ("ESRT_HOST", "tcp://10.0.0.1:80", ("a host name or an IP address", "enableServiceLinks")),
        ("ESRT_DEADLINE_S", "1e400", ("a number of seconds above 0",)),
        ("ESRT_UPLOAD_S", "nan", ("a number of seconds above 0",)),
        ("ESRT_TLS_KEY", "key.pem", ("set without ESRT_TLS_CERTIFICATE",)),
        ("VLLM_PORT", "tcp://10.0.0.1:8000", ("whole number", "enableServiceLinks: false")),
        ("VLLM_PORT", "70000", ("from 0 to 65535",)),
        ("TMPDIR", f"/{'long' * 20}", ("81 bytes", "at most 70 bytes")),
        ("VLLM_RPC_BASE_PATH", f"/{'long' * 20}", ("81 bytes", "at most 70 bytes")),
    ],
)
def test_an_invalid_variable(variable: str, value: str, words: tuple[str, ...]) -> None:
    _assert_refused(_run(**{variable: value}), variable, *words)


def test_a_port_in_use_is_told_before_the_libraries_are_imported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code = f"""
import sys
from cloud_vllm.cli import app
try:
    app(["--port", "{port}"])
except SystemExit as end:
    assert end.code == 2
sys.exit("torch" in sys.modules or "uvicorn" in sys.modules)
"""
        command = [sys.executable, "-c", code]
        assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == 0


def test_the_environment_of_vllm_matters_to_vllm_only(tmp_path: Path) -> None:
    arguments = "--engine", "transformers", "--checkpoint", str(tmp_path / "none")
    _assert_refused(_run(*arguments, VLLM_PORT="tcp://10.0.0.1:80"), "No checkpoint")


def test_an_unknown_variable_is_a_line_of_the_log() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = _run("--port", port, ESRT_PROT="1", ESRT_KEY_FILE="")
    warning, error = result.stderr.splitlines()
    assert json.loads(warning)["message"].endswith("Did you mean ESRT_PORT?")
    assert json.loads(warning)["level"] == "warning"
    assert error.startswith("error: Cannot listen")


def test_the_settings_are_printed_at_80_columns() -> None:
    text = _run("settings").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "ESRT_PORT=8080" in text


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_ctrl_c_at_the_start_takes_one_line(checkpoint: Checkpoint, seconds: float) -> None:
    """An interrupt while the libraries are imported, and one later."""
    arguments = "--checkpoint", str(checkpoint.folder), "--engine", "transformers", "--port", "0"
    with subprocess.Popen(
        [sys.executable, "-m", "cloud_vllm", *arguments],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        # A background process may ignore SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        assert "Loading" in process.stderr.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        lines = process.stderr.readlines()
    assert process.returncode == 0
    assert [json.loads(line)["message"] for line in lines] == ["Stopping."]


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
    result = _run("--tls-certificate", str(tmp_path / "chain.pem"))
    _assert_refused(result, "--tls-certificate is set without --tls-key", "belong together")


def test_help_lists_the_options_without_importing_torch() -> None:
    code = "import cloud_vllm.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
    text = _run("--help").stdout
    for option in ("--checkpoint", "--engine", "--host", "--port", "--key-file", "keys"):
        assert option in text


def test_wrong_settings_are_reported_without_importing_torch() -> None:
    code = """
import sys
from cloud_vllm.cli import app
try:
    app(["--host", "0.0.0.0"])
except SystemExit as end:
    assert end.code == 2
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
