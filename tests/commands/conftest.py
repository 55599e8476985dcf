"""A copy of the repository in which the commands of the documents run as a reader types them."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from cloud_vllm.process import stop
from esrt.bundled import REPOSITORY
from tests.deploy.helpers import free_port
from tests.docs.test_docs import FILES

ARTIFACT = "build/artifacts/esrt-nano-onnx-int8"
ADDRESS = "http://127.0.0.1:8080"
# Commands that send to the gateway's default address and have an option for another one.
CLIENTS = re.compile(r"(-m edge_runtime translate|esrt-edge translate|-m examples\.\w+)")
START_S = 180.0


@dataclass
class Workspace:
    """A copy of the repository with this environment as ``.venv``, and its gateways.

    Gateways listen on free ports instead of 8080 and use the transformers engine, which loads
    sooner than vLLM.

    Attributes:
        folder: the copy.
        servers: stops the gateways.
        addresses: address of each gateway, by its command.
        outputs: last output of each command.
    """

    folder: Path
    servers: ExitStack
    addresses: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    def environment(self, **changes: str) -> dict[str, str]:
        """Environment of a shell in which no environment is activated."""
        kept = {
            name: value
            for name, value in os.environ.items()
            # `make test` sets MAKELEVEL and others, with which `make demo` prints more lines.
            if not name.startswith(("ESRT_", "MAKE", "MFLAGS", "VIRTUAL_ENV"))
            and not name.lower().endswith("_proxy")
        }
        activated = str(Path(sys.prefix) / "bin")
        path = [one for one in os.environ["PATH"].split(":") if one != activated]
        return {
            **kept,
            "PATH": ":".join(path),
            # Before an installed copy of the packages, which would write into the repository.
            "PYTHONPATH": str(self.folder),
            "PYTHONIOENCODING": "utf-8",
            "ESRT_ENGINE": "transformers",
            **changes,
        }

    def run(self, command: str, gateway: str = "", **environment: str) -> str:
        """Run a command and return its output; the address of the gateway is the only change."""
        typed = command
        if gateway:
            environment.setdefault("ESRT_SERVER", gateway)
            command = CLIENTS.sub(rf"\1 --server {gateway}", command).replace(ADDRESS, gateway)
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=self.folder,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        self.outputs[typed] = done.stdout
        return done.stdout

    def ensure_artifact(self) -> None:
        """Export the bundled model, unless a command of a document has done so."""
        if not (self.folder / ARTIFACT).exists():
            self.run(".venv/bin/python export/to_onnx.py")

    def serve(self, command: str, **environment: str) -> str:
        """Start a gateway by its command, unless it runs; return its address once it is ready."""
        name = command.removeprefix(".venv/bin/")
        if name not in self.addresses:
            port = free_port()
            log = self.folder / "build" / f"gateway-{port}.log"
            log.parent.mkdir(exist_ok=True)
            with log.open("wb") as output:
                process = subprocess.Popen(
                    ["bash", "-c", f"exec {command}"],
                    cwd=self.folder,
                    env=self.environment(ESRT_PORT=str(port), **environment),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            self.servers.callback(stop, process)
            self.addresses[name] = f"http://127.0.0.1:{port}"
            end = time.monotonic() + START_S
            while not self._is_ready(self.addresses[name]):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
        return self.addresses[name]

    @staticmethod
    def _is_ready(address: str) -> bool:
        try:
            return httpx.get(f"{address}/readyz", timeout=10, trust_env=False).is_success
        except httpx.TransportError:
            return False


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("clone")
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
        os.utime(folder / name, (0, 0))  # older than the environment, so make does not set it up
    (folder / ".venv").symlink_to(sys.prefix)
    unchanged = subprocess.run(["make", "-q", "setup"], cwd=folder, check=False)
    assert unchanged.returncode == 0, "`make setup` did not make this environment: run it first"
    with ExitStack() as servers:
        yield Workspace(folder, servers)
