"""Environment variables of the libraries underneath, set in this one place.

They are read when those libraries are imported, so `prepare` comes before any such import.
"""

import os

_DEFAULTS = {
    # A checkpoint is a local folder; nothing may be looked up on or reported to the network.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    # The default pins one thread to each core and reserves one, which on few cores leaves none.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # One core is left to the gateway, which would otherwise interrupt the engine's threads.
    "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) - 1)),
    # The gateway has threads by the time the engine's process starts; forking would copy locks.
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}
_REQUIRED = {
    # xgrammar 0.2.8 looks compiled grammars up without regard to token ids: with its cache, every
    # direction would be held to the tags of the first one that was asked for.
    "VLLM_XGRAMMAR_CACHE_MB": "0",
}


def prepare() -> None:
    """Set what is not set already, and what has to be so."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.update(_REQUIRED)
