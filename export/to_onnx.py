"""Exports the device's part of a checkpoint to ONNX: ``python export/to_onnx.py``.

Load, trace, optionally quantize, compare with torch on the bundled clips, describe. Nothing is
written unless the comparison holds.
"""

import ast
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from esrt.arrays import Float32Array

if __package__ is None:  # run as a file: the repository, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from esrt.checkpoint import Checkpoint
from esrt.errors import CheckFailed
from esrt.manifest import Activations, Manifest, Precision
from esrt.model import EdgeModel
from esrt.wire import Split
from export import cli, parity, quantization_error
from export.progress import report_progress
from export.recipe import ExportRecipe, LoweredProgram, Settings, export
from export.tracing import INPUT, OUTPUT, DeviceGraph, trace

FLOAT = onnx.TensorProto.FLOAT
# Protobuf's limit on one message, less what a graph is beside its weights.
_ONE_FILE_BYTES = 2**31 - 2**26
# Where torch's exporter writes the modules that a node comes from.
_SCOPES = "pkg.torch.onnx.name_scopes"


def export_onnx(checkpoint: Checkpoint, out: Path, precision: Precision, split: Split) -> Manifest:
    """Write an ONNX artifact; see :func:`export.recipe.export`."""
    return export(RECIPE, checkpoint, out, precision, split).manifest


def _lower(model: EdgeModel, settings: Settings, path: Path) -> LoweredProgram:
    graph = DeviceGraph(model, settings.split)
    int8 = quantization_error.select_fp_layers(graph, model.config, settings)
    report_progress("tracing")
    exported = torch.onnx.export(
        trace(graph, model.config),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    if exported is None:
        raise CheckFailed("The ONNX exporter returned nothing.", "See its messages above.")
    large = sum(weight.nbytes for weight in graph.parameters()) > _ONE_FILE_BYTES
    exported.save(str(path), external_data=large)
    if settings.precision is Precision.FP16:
        half = convert_float_to_float16(str(path), keep_io_types=True)
        _data_of(path).unlink(missing_ok=True)
        onnx.save(half, path)
    if settings.precision is Precision.INT8:
        report_progress("quantizing")
        static = settings.activations is Activations.STATIC
        _quantize(path, int8.mels if static else None, int8.kept)
    return LoweredProgram(runner(path), (), int8.kept, int8.errors)


def _quantize(path: Path, mels: Iterable[Float32Array] | None, kept: Collection[str]) -> None:
    """Linear layers to int8, per channel; the convolutions and attention stay in fp32.

    Args:
        path: the graph, which is replaced.
        mels: log-mels of speech, (128, frames) each, to take fixed ranges of activations from;
            without, each input is quantized by its own.
        kept: the linear layers, by name, to leave in floating point.
    """
    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(
        str(path),
        str(prepared),
        skip_symbolic_shape=True,
        save_as_external_data=_data_of(path).exists(),
        all_tensors_to_one_file=True,
        external_data_location=_data_of(prepared).name,
    )
    linear = _linear_layers(path, prepared)
    lost = sorted(set(kept) - set(linear.values()))
    if lost:
        raise CheckFailed(
            f"The graph's nodes do not tell which are {', '.join(lost)}.",
            "Nothing was written; check the torch version against the lock.",
        )
    chosen = [
        name
        for node, layer in linear.items()
        if layer not in kept
        for name in (node, f"{node}_MatMul")  # which onnxruntime makes of a Gemm first
    ]
    shared: dict[str, Any] = {
        "op_types_to_quantize": ["MatMul", "Gemm"],
        "nodes_to_quantize": chosen,
        "per_channel": True,
        "weight_type": QuantType.QInt8,
    }
    if mels is None:
        quantize_dynamic(prepared, path, **shared)
    else:
        quantize_static(
            prepared,
            path,
            _Speech(mels),
            activation_type=QuantType.QUInt8,  # what kernels on x86-64 multiply by int8
            # A product's result goes on in fp32, as there is nothing else for it to feed.
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
            **shared,
        )
    for passed in (prepared, _data_of(prepared), _data_of(path)):
        passed.unlink(missing_ok=True)
    graph = onnx.load(path).graph
    held = {tensor.name for tensor in graph.initializer if tensor.data_type == FLOAT}
    floating = [
        node.name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in held
    ]
    if len(floating) != len(kept):
        raise CheckFailed(
            f"{len(floating)} linear layers of the int8 graph multiply in floating point, instead"
            f" of {len(kept)}.",
            "Nothing was written; check the onnxruntime version against the lock.",
        )


def _data_of(path: Path) -> Path:
    """Where the weights of a graph lie that is too large for one file."""
    return path.with_name(f"{path.name}.data")


class _Speech(CalibrationDataReader):  # type: ignore[misc]
    """Feeds speech to ONNX Runtime's calibration."""

    def __init__(self, mels: Iterable[Float32Array]) -> None:
        self._mels = iter(mels)

    def get_next(self) -> dict[str, Float32Array] | None:
        """The next input, or ``None`` after the last."""
        mel = next(self._mels, None)
        return None if mel is None else {INPUT: mel[None]}


def _linear_layers(traced: Path, prepared: Path) -> dict[str, str]:
    """Products by weights of the prepared graph: the node's name, and its layer's.

    The layer is what torch wrote at the node of that name in the traced graph; preparing drops it,
    and may append to a name what it fused.
    """
    layer_of = {
        node.name: _innermost(entry.value)
        for node in onnx.load(traced, load_external_data=False).graph.node
        for entry in node.metadata_props
        if entry.key == _SCOPES
    }
    graph = onnx.load(prepared, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return {
        node.name: layer_of.get(node.name.split("/")[0], "")
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights
    }


def _innermost(scopes: str) -> str:
    """The module of a node, from torch's list of the names of all that it is in."""
    modules = [name for name in ast.literal_eval(scopes)[:-1] if name]
    return str(modules[-1]) if modules else ""


def runner(path: Path) -> parity.Runner:
    """Run a graph by ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(mel: Float32Array) -> Float32Array:
        return np.asarray(session.run([OUTPUT], {INPUT: mel})[0])

    return run


RECIPE = ExportRecipe(
    kind="onnx",
    title="ONNX",
    entry="model.onnx",
    tools=("torch", "transformers", "onnx", "onnxscript", "onnxruntime"),
    lower=_lower,
    activations=(Activations.DYNAMIC, Activations.STATIC),
)

if __name__ == "__main__":
    cli.run(RECIPE)
