"""Starts a gateway process on loopback, for the demo, the benchmarks and the tests."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from esrt.bundled import REPOSITORY
from esrt.errors import ServerError

# Loading an engine takes up to two minutes on a busy machine with two cores.
_READY_S = 300.0
_STOP_S = 60.0
_POLL_S = 0.1


@dataclass(frozen=True)
class GatewayProcess:
    """A running gateway process.

    Attributes:
        process: the gateway's process.
        log: the file that holds its standard output and standard error.
        address: the address that it listens on, such as ``http://127.0.0.1:40123``.
    """

    process: subprocess.Popen[bytes]
    log: Path
    address: str

    def is_ready(self) -> bool:
        """Whether ``/readyz`` answers with success."""
        try:
            # Not through a proxy from the environment: the gateway is on this machine.
            return httpx.get(f"{self.address}/readyz", timeout=10, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def wait_until_ready(self, seconds: float = _READY_S) -> None:
        """Poll ``/readyz`` until the engine has loaded.

        Raises:
            ServerError: the gateway exited, or was not ready in time.
        """
        end = time.monotonic() + seconds
        while not self.is_ready():
            _check_alive(self.process, self.log, end)


@contextmanager
def start_gateway(
    *arguments: str, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[GatewayProcess]:
    """Start ``python -m cloud_vllm`` on a free port; stop the process at the end of the block.

    Yields once the gateway listens. The engine may still be loading then: see
    `GatewayProcess.wait_until_ready`.

    Args:
        arguments: additional command-line arguments.
        log: file for the output; its folder is created.
        env: complete environment of the process; by default the environment of this process.

    Raises:
        ServerError: the gateway exited before it listened, or did not listen in time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cloud_vllm", "--port", "0", *arguments],
            cwd=REPOSITORY,
            env=os.environ if env is None else env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + _READY_S
        while not (match := re.search(rb"Listening on (https?://[^\s,]+:\d+)", log.read_bytes())):
            _check_alive(process, log, end)
        yield GatewayProcess(process, log, match[1].decode())
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate a server process; kill it if it does not end within a minute."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _check_alive(process: subprocess.Popen[bytes], log: Path, end: float) -> None:
    """Sleep for one polling interval while the process lives and there is time left."""
    if process.poll() is not None:
        raise ServerError("The gateway exited early.", f"See {log}.")
    if time.monotonic() > end:
        raise ServerError("The gateway was not ready in time.", f"See {log}.")
    time.sleep(_POLL_S)
