"""Runs an ONNX graph by ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnxruntime

from esrt.arrays import Float32Array
from esrt.errors import CheckFailed
from export.graph_io import INPUT, OUTPUT, Runner


def load_runner(path: Path) -> Runner:
    """Load a graph and return the function that runs it.

    That function raises `CheckFailed` when the graph fails on an input.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(mel: Float32Array) -> Float32Array:
        try:
            return np.asarray(session.run([OUTPUT], {INPUT: mel})[0])
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise CheckFailed(
                f"The graph fails on an input of shape {mel.shape}: {error}.",
                "Export the artifact again.",
            ) from error

    return run
