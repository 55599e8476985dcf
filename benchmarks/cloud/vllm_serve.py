"""vLLM's own OpenAI-compatible server, with the engine arguments of the gateway."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.cloud.prompts import MODEL_NAME
from cloud_vllm.engines.base import PROMPT_TOKENS
from cloud_vllm.process import stop
from cloud_vllm.settings import Settings
from esrt.checkpoint import Checkpoint
from esrt.errors import ServerError

GRAMMAR_BACKEND = "xgrammar"
_READY_S, _POLL_S = 300.0, 0.2


def server_arguments(checkpoint: Checkpoint, settings: Settings) -> dict[str, Any]:
    """Engine arguments of vLLM's server, equal to those of the gateway's engine."""
    longest = checkpoint.config.max_tokens + PROMPT_TOKENS + settings.max_new_tokens
    return {
        "model": str(checkpoint.decoder),
        "dtype": settings.dtype,
        "enable_prompt_embeds": True,
        "max_model_len": longest,
        "max_num_seqs": settings.max_concurrent,
        "kv_cache_memory_bytes": settings.kv_cache_bytes,
        "enforce_eager": not settings.compile,
        "enable_prefix_caching": False,
        "generation_config": "vllm",
        "stream_interval": settings.stream_interval,
        # vLLM's default on a CPU is a separate worker process, for which the engine waits by
        # spinning: that takes one of two cores. The gateway avoids it in the same way.
        "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
    }


def command_line(arguments: dict[str, Any]) -> list[str]:
    """Options of vLLM's server for arguments of its engine."""
    options = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{option}" if value else f"--no-{option}")
        else:
            options += [f"--{option}", str(value)]
    return options


@dataclass(frozen=True)
class VllmServer:
    """A vLLM server that was started.

    Attributes:
        process: the process that serves HTTP.
        port: port on loopback.
        log: the file with the server's output.
    """

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def wait_until_ready(self) -> None:
        """Poll ``/health`` until the engine has loaded.

        Raises:
            ServerError: the server ended, or was not ready in time.
        """
        end = time.monotonic() + _READY_S
        while not self._is_healthy():
            if self.process.poll() is not None or time.monotonic() > end:
                raise ServerError("vLLM's server did not become ready.", f"See {self.log}.")
            time.sleep(_POLL_S)

    def _is_healthy(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self.port}/health"
            return httpx.get(url, timeout=10, trust_env=False).is_success
        except httpx.TransportError:
            return False


@contextmanager
def start_vllm_server(
    checkpoint: Checkpoint, settings: Settings, log: Path
) -> Iterator[VllmServer]:
    """Start ``python -m vllm.entrypoints.openai.api_server``; stop it at the end of the block.

    The command ``vllm serve`` is the same server, but vLLM's build for CPUs cannot start it.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    options = command_line(server_arguments(checkpoint, settings))
    options += ["--structured-outputs-config", json.dumps({"backend": GRAMMAR_BACKEND})]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options),
                *("--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield VllmServer(process, port, log)
    finally:
        stop(process)
