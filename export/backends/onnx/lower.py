"""Lowering to ONNX: export the traced graph, and quantize its linear layers by ONNX Runtime."""

import ast
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from esrt.arrays import Float32Array
from esrt.config import ModelConfig
from esrt.errors import CheckFailed
from esrt.manifest import Activations, Precision
from export.graph_io import INPUT, OUTPUT
from export.progress import report_progress
from export.quantization_error import QuantizationPlan
from export.recipe import Notes, Settings
from export.tracing import trace

# Protobuf's limit on one message, less some room for the graph without its weights.
_ONE_FILE_BYTES = 2**31 - 2**26
# Metadata key under which torch's exporter lists the modules that a node comes from.
_SCOPES = "pkg.torch.onnx.name_scopes"


def lower(
    graph: nn.Module, config: ModelConfig, settings: Settings, plan: QuantizationPlan, path: Path
) -> Notes:
    """Write a graph as ONNX; see `export.recipe.ExportRecipe`.

    Raises:
        CheckFailed: a linear layer that should be int8 multiplies in floating point.
    """
    report_progress("tracing")
    exported = torch.onnx.export(
        trace(graph, config),
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
        _weights_file(path).unlink(missing_ok=True)
        onnx.save(half, path)
    if settings.precision is Precision.INT8:
        report_progress("quantizing")
        static = settings.activations is Activations.STATIC
        _quantize(path, plan.mels if static else None, plan.kept)
    return ()


def _quantize(path: Path, mels: Iterable[Float32Array] | None, kept: Collection[str]) -> None:
    """Quantize the linear layers, weights per channel; convolutions and attention stay in fp32.

    Args:
        path: the graph, which is replaced.
        mels: log-mels of speech, (mel bins, frames) each, that set fixed ranges of activations;
            ``None`` quantizes each input by its own range.
        kept: names of the linear layers that stay in floating point.
    """
    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(
        str(path),
        str(prepared),
        skip_symbolic_shape=True,
        save_as_external_data=_weights_file(path).exists(),
        all_tensors_to_one_file=True,
        external_data_location=_weights_file(prepared).name,
    )
    linear = _linear_layers(path, prepared)
    missing = sorted(set(kept) - set(linear.values()))
    if missing:
        raise CheckFailed(
            f"The graph has no node for the layers {', '.join(missing)}.",
            "Nothing was written; check the torch version against the lock.",
        )
    selected = [
        name
        for node, layer in linear.items()
        if layer not in kept
        for name in (node, f"{node}_MatMul")  # onnxruntime first turns a Gemm into this
    ]
    # Unsigned weights: without VNNI, x86-64 kernels multiply unsigned by signed 8-bit integers in
    # sums of 16 bits that saturate, and features are wrong. Unsigned products are exact everywhere.
    options: dict[str, Any] = {
        "op_types_to_quantize": ["MatMul", "Gemm"],
        "nodes_to_quantize": selected,
        "per_channel": True,
        "weight_type": QuantType.QUInt8,
    }
    symmetric = {"WeightSymmetric": True}
    if mels is None:
        quantize_dynamic(prepared, path, extra_options=symmetric, **options)
    else:
        quantize_static(
            prepared,
            path,
            _CalibrationMels(mels),
            activation_type=QuantType.QUInt8,
            # Products feed operations in fp32 only, so their results are not quantized.
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                **symmetric,
            },
            **options,
        )
    for scratch in (prepared, _weights_file(prepared), _weights_file(path)):
        scratch.unlink(missing_ok=True)
    _check_int8(path, len(kept))


def _check_int8(path: Path, kept: int) -> None:
    graph = onnx.load(path).graph
    floats = {
        tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    }
    floating = sum(
        node.op_type in ("MatMul", "Gemm") and node.input[1] in floats for node in graph.node
    )
    if floating != kept:
        raise CheckFailed(
            f"{floating} linear layers of the int8 graph multiply in floating point, instead"
            f" of {kept}.",
            "Nothing was written; check the onnxruntime version against the lock.",
        )


def _weights_file(path: Path) -> Path:
    """File beside a graph that holds its weights when they are too large for the graph's file."""
    return path.with_name(f"{path.name}.data")


class _CalibrationMels(CalibrationDataReader):  # type: ignore[misc]
    """Speech for ONNX Runtime's calibration."""

    def __init__(self, mels: Iterable[Float32Array]) -> None:
        self._mels = iter(mels)

    def get_next(self) -> dict[str, Float32Array] | None:
        """Return the next input, or ``None`` after the last."""
        mel = next(self._mels, None)
        return None if mel is None else {INPUT: mel[None]}


def _linear_layers(traced: Path, prepared: Path) -> dict[str, str]:
    """Names of the prepared graph's nodes that multiply by weights, each with its layer's name.

    torch writes the layer into a node's metadata in the traced graph. Preparing the graph drops
    the metadata and may append the names of fused nodes to a node's name.
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
    """Innermost module of torch's list of the modules that contain a node."""
    modules = [name for name in ast.literal_eval(scopes)[:-1] if name]
    return str(modules[-1]) if modules else ""
