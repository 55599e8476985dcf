"""Exports the device's part of a checkpoint to ONNX: ``python export/to_onnx.py``.

Load, trace, optionally quantize, compare with torch on the bundled clips, describe. Nothing is
written unless the comparison holds.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

if __package__ is None:  # run as a file: the repository, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from esrt.checkpoint import Checkpoint
from esrt.errors import CheckFailed
from esrt.manifest import Manifest, SplitPoint
from esrt.model import EdgeModel
from export import command, parity
from export.graph import INPUT, OUTPUT, DeviceGraph, trace
from export.target import Lowered, Precision, Target, export


def export_onnx(
    checkpoint: Checkpoint, out: Path, precision: Precision, split: SplitPoint
) -> Manifest:
    """Write an ONNX artifact; see :func:`export.target.export`."""
    return export(TARGET, checkpoint, out, precision, split).manifest


def _lower(model: EdgeModel, split: SplitPoint, precision: Precision, path: Path) -> Lowered:
    exported = torch.onnx.export(
        trace(DeviceGraph(model, split), model.config),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    if exported is None:
        raise CheckFailed("The ONNX exporter returned nothing.", "See its messages above.")
    exported.save(str(path))
    if precision is Precision.INT8:
        _quantize(path)
    return Lowered(_runner(path))


def _quantize(path: Path) -> None:
    """Linear layers to int8, per channel; the convolutions stay in fp32."""
    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(
        prepared,
        path,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()
    operators = {node.op_type for node in onnx.load(path).graph.node}
    if "MatMulInteger" not in operators:
        raise CheckFailed(
            "The int8 graph multiplies in floating point.",
            "Nothing was written; check the onnxruntime version against the lock.",
        )


def _runner(path: Path) -> parity.Runner:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(mel: parity.Array) -> parity.Array:
        return np.asarray(session.run([OUTPUT], {INPUT: mel})[0])

    return run


TARGET = Target(
    kind="onnx",
    title="ONNX",
    entry="model.onnx",
    tools=("torch", "transformers", "onnx", "onnxscript", "onnxruntime"),
    lower=_lower,
)

if __name__ == "__main__":
    command.run(TARGET)
