"""Operators of an ONNX artifact, as ONNX Runtime fuses and runs them.

ONNX Runtime rewrites a graph before the run, so the file does not show which products are integer
in the end. The profile of a run and the optimized graph show it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, numpy_helper

from esrt.arrays import Float32Array
from esrt.manifest import Manifest
from export.graph_io import INPUT
from export.inspection import Inspection, Operation

# Suffix of the profile's events for the work of a node itself.
_KERNEL_TIME = "_kernel_time"
# Matrix products: index of the weights among the inputs, and whether they multiply integers.
_PRODUCTS = {
    "MatMul": (1, False),
    "Gemm": (1, False),
    "FusedMatMul": (1, False),
    "FusedGemm": (1, False),
    "MatMulInteger": (1, True),
    "MatMulIntegerToFloat": (1, True),
    "DynamicQuantizeMatMul": (1, True),
    "QLinearMatMul": (3, True),
    "QGemm": (3, True),
}
_CONVOLUTIONS = {
    "Conv": (1, False),
    "FusedConv": (1, False),
    "ConvInteger": (1, True),
    "QLinearConv": (3, True),
}


def inspect(path: Path, manifest: Manifest, mel: Float32Array) -> Inspection:
    """Run the graph once on ``mel`` (mel bins, frames) and read its profile."""
    with TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimized.data"
        )
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        session.run(None, {INPUT: mel[np.newaxis]})
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        graph = onnx.load(optimized, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    operations = tuple(
        _operation(event["args"], nodes.get(event["name"].removesuffix(_KERNEL_TIME)), constants)
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL_TIME)
    )
    model = onnx.load(path, load_external_data=False)
    return Inspection(operations, lambda: _weights(path), _requirements(model, manifest))


def _operation(run: dict[str, Any], node: Any, constants: set[str]) -> Operation:
    name = run["op_name"]
    layer = node.name if node is not None else name
    inputs = [next(iter(shape.values())) for shape in run["input_type_shape"] if shape]
    outputs = [next(iter(shape.values())) for shape in run["output_type_shape"] if shape]
    if name in _PRODUCTS:
        place, integer = _PRODUCTS[name]
        macs = np.prod(inputs[0]) * outputs[0][-1]
        linear = node is not None and node.input[place] in constants
        return Operation(name, layer, integer=integer, linear=linear, macs=int(macs))
    if name in _CONVOLUTIONS:
        place, integer = _CONVOLUTIONS[name]
        macs = np.prod(outputs[0]) * np.prod(inputs[place][1:])
        return Operation(name, layer, integer=integer, macs=int(macs))
    return Operation(name, layer)


def _weights(path: Path) -> Iterator[tuple[str, Float32Array]]:
    """8-bit matrices of the file, transposed from ONNX's (inputs, outputs)."""
    graph = onnx.load(path).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        # The quantizer derives the name of a MatMulInteger's scale from the weight's name.
        if node.op_type == "MatMulInteger":
            weight, zero = node.input[1], node.input[3]
            scale = weight.removesuffix("_quantized") + "_scale"
        elif node.op_type == "DequantizeLinear":
            weight, scale, zero = node.input
        else:
            continue
        if not {weight, scale, zero} <= tensors.keys() or len(tensors[weight].dims) != 2:
            continue
        if tensors[weight].data_type == onnx.TensorProto.UINT8:
            values, scales, zeros = (
                numpy_helper.to_array(tensors[name]).astype(np.float32)
                for name in (weight, scale, zero)
            )
            yield weight, ((values - zeros) * scales).T


def _requirements(model: ModelProto, manifest: Manifest) -> tuple[str, ...]:
    used = {node.domain for node in model.graph.node}
    versions = {opset.domain: opset.version for opset in model.opset_import}
    return (
        f"ONNX operator set {versions.get('', 0)}, file format {model.ir_version}; tried with"
        f" ONNX Runtime {manifest.tools.get('onnxruntime', '?')}; any CPU that ONNX Runtime"
        " supports",
        "ONNX Runtime before 1.29 sends nothing; later official builds upload telemetry, unless"
        " ORT_DISABLE_TELEMETRY is 1 before the library is loaded",
        *(f"operators of {domain}" for domain in sorted(used - {"", "ai.onnx"})),
    )
