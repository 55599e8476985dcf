"""Runs an ExecuTorch program by ExecuTorch's runtime."""

from pathlib import Path

import torch
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime

from esrt.arrays import Float32Array
from esrt.errors import CheckFailed
from esrt.native_log import discard_native_log
from export.graph_io import Runner

_RUNTIME = Runtime.get()
with discard_native_log():  # the thread pool, at its first use, logs files that it did not find
    portable_lib._threadpool_get_thread_count()


def load_runner(path: Path) -> Runner:
    """Load a program and return the function that runs it.

    That function raises `CheckFailed` when the program fails on an input.
    """
    program = _RUNTIME.load_program(path)
    method = program.load_method("forward")

    def run(mel: Float32Array) -> Float32Array:
        try:
            (features,) = method.execute([torch.from_numpy(mel)])
        except RuntimeError as error:
            raise CheckFailed(
                f"The program fails on an input of shape {mel.shape}: {error}.",
                "See ExecuTorch's messages above; export the artifact again.",
            ) from error
        array: Float32Array = features.numpy()
        return array

    return run


def longest_input(path: Path) -> int:
    """Mel frames of the longest input that a program takes."""
    metadata = _RUNTIME.load_program(path).metadata("forward")
    frames: int = metadata.input_tensor_meta(0).sizes()[2]
    return frames
