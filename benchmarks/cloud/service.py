"""The gateway in its own process, with its engine, and the resources that both take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from cloud_vllm.process import GatewayProcess, start_gateway


@dataclass(frozen=True)
class Service:
    """A running gateway.

    Attributes:
        gateway: the gateway.
        process: the gateway's process.
        started: when the process was started, on `time.monotonic`.
    """

    gateway: GatewayProcess
    process: psutil.Process
    started: float

    @property
    def port(self) -> int:
        """Port on loopback."""
        port = httpx.URL(self.gateway.address).port
        assert port is not None
        return port

    def wait_until_ready(self) -> float:
        """Wait until the engine has loaded; return the seconds since the start of the process.

        Raises:
            ServerError: the gateway ended, or was not ready in time.
        """
        self.gateway.wait_until_ready()
        return time.monotonic() - self.started

    def is_ready(self) -> bool:
        """Whether ``/readyz`` answers with success."""
        return self.gateway.is_ready()

    def engine(self) -> psutil.Process | None:
        """The engine's process, which vLLM names ``EngineCore``; ``None`` while there is none."""
        for child in self.process.children(recursive=True):
            try:
                if "EngineCore" in child.name() + " ".join(child.cmdline()):
                    return child
            except psutil.NoSuchProcess:
                continue
        return None

    def resident(self) -> dict[str, int]:
        """Resident bytes of the gateway's process and of the engine's process."""
        engine = self.engine()
        return {
            "gateway": self.process.memory_info().rss,
            "engine": engine.memory_info().rss if engine else 0,
        }


@contextmanager
def start_service(checkpoint: Path, log: Path) -> Iterator[Service]:
    """Start a gateway with vLLM; stop it at the end of the block.

    Raises:
        ServerError: the gateway ended early.
    """
    started = time.monotonic()
    arguments = ("--engine", "vllm", "--checkpoint", str(checkpoint.resolve()))
    with start_gateway(*arguments, log=log) as gateway:
        yield Service(gateway, psutil.Process(gateway.process.pid), started)
