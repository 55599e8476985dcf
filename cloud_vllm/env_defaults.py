"""Environment variables for vLLM, PyTorch and Hugging Face libraries.

The libraries read them when they are imported, so `prepare` has to run before those imports.
"""

import os
import tempfile

from esrt.cores import usable_cores
from esrt.errors import RequestError

_DEFAULTS = {
    # A checkpoint is a local folder: no lookups on the network and no usage reports.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    # vLLM's default pins one thread to each core and reserves one core; few cores leave none.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # One core stays free for the gateway, which would otherwise interrupt the engine's threads.
    "OMP_NUM_THREADS": str(max(1, usable_cores() - 1)),
    # oneDNN keeps the compiled kernels of the last 1024 shapes of a matrix product. Every number of
    # tokens in a batch is a shape: the engine's memory rose by 150 MB before the cache was full.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    # The gateway has threads when the engine process starts; a fork would copy held locks.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # The log has no colours and no progress bars.
    "VLLM_LOGGING_COLOR": "0",
    "TQDM_DISABLE": "1",
    # vLLM's processes warn of libraries that will change, which only their developers can mend.
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
}
_LARGEST_PORT = 65535
# Linux takes 107 bytes for the path of a socket. vLLM adds a slash and a UUID of 36 characters.
_LONGEST_SOCKET_FOLDER = 107 - 37
_REQUIRED = {
    # The grammar cache of xgrammar 0.2.8 ignores token ids: with it, every direction would get the
    # grammar, and so the language tags, of the first direction that was requested.
    "VLLM_XGRAMMAR_CACHE_MB": "0",
}


def prepare() -> None:
    """Set the defaults that the environment does not set, and the required values."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.update(_REQUIRED)


def check() -> None:
    """Check the variables whose values vLLM would reject with a puzzling error, or not at all.

    Raises:
        RequestError: a port is no number, or the folder of sockets has too long a path.
    """
    port = os.environ.get("VLLM_PORT", "0")
    if not (port.isascii() and port.isdecimal() and int(port) <= _LARGEST_PORT):
        raise RequestError(
            f"VLLM_PORT is {port[:64]!r}, expected a whole number from 0 to {_LARGEST_PORT}.",
            "Unset it. Kubernetes sets such a variable for a Service named vllm: rename the"
            " Service, or set enableServiceLinks: false.",
        )
    variable = "VLLM_RPC_BASE_PATH" if "VLLM_RPC_BASE_PATH" in os.environ else "TMPDIR"
    folder = os.environ.get(variable, "") or tempfile.gettempdir()
    if len(os.fsencode(folder)) > _LONGEST_SOCKET_FOLDER:
        raise RequestError(
            f"{variable} has {len(os.fsencode(folder))} bytes, too many for vLLM's sockets.",
            f"Set it to a folder whose path has at most {_LONGEST_SOCKET_FOLDER} bytes.",
        )
