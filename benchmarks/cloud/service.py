"""The gateway as its own process, with the real engine, and what it takes of the machine."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from esrt.errors import ServerError

READY_S, STOP_S = 300.0, 60.0


@dataclass(frozen=True)
class Service:
    """A gateway that runs.

    Attributes:
        process: it.
        port: where it listens, on loopback.
        start_s: how long it took from its start until it was ready.
    """

    process: psutil.Process
    port: int
    start_s: float

    def cpu_s(self) -> float:
        """CPU time of the gateway's process, all threads, to the nanosecond; the engine's not."""
        return cpu_s(self.process.pid)

    def engine(self) -> psutil.Process | None:
        """The engine's process, which vLLM names so; ``None`` while there is none."""
        for child in self.process.children(recursive=True):
            try:
                if "EngineCore" in child.name() + " ".join(child.cmdline()):
                    return child
            except psutil.NoSuchProcess:
                continue
        return None

    def resident(self) -> dict[str, int]:
        """Resident bytes of the gateway's and the engine's process."""
        engine = self.engine()
        return {
            "gateway": self.process.memory_info().rss,
            "engine": engine.memory_info().rss if engine else 0,
        }

    def ready(self) -> bool:
        """Whether ``/readyz`` says so."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=10).is_success
        except httpx.TransportError:
            return False


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, ended threads included.

    Its clock's number is made as glibc's clock_getcpuclockid does; /proc counts in hundredths.
    """
    return time.clock_gettime((~pid << 3) | 2)


@contextmanager
def running(checkpoint: Path, log: Path, env: dict[str, str]) -> Iterator[Service]:
    """Start a gateway, wait until it is ready, stop it in the end.

    Raises:
        ServerError: it ended, or did not become ready in time.
    """
    command = [sys.executable, "-m", "cloud_vllm", "--engine", "vllm", "--port", "0"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        begin = time.monotonic()
        process = subprocess.Popen(
            [*command, "--checkpoint", str(checkpoint)],
            env={**os.environ, **env},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        port = 0
        while time.monotonic() < begin + READY_S:
            if process.poll() is not None:
                raise ServerError("The gateway ended early.", f"See {log}.")
            if found := re.search(r"http://\S+:(\d+)", log.read_text("utf-8", "replace")):
                port = int(found[1])
                service = Service(psutil.Process(process.pid), port, time.monotonic() - begin)
                if service.ready():
                    break
            time.sleep(0.1)
        else:
            raise ServerError(f"No gateway after {READY_S:g} seconds.", f"See {log}.")
        yield Service(service.process, port, time.monotonic() - begin)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
