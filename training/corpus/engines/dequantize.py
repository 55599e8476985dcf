"""A dynamically quantized ONNX model in floating point.

Kokoro's packages have 8-bit weights. Without instructions for 8-bit products, ONNX Runtime's
integer convolutions are several times slower than those in floating point.
"""

from collections import defaultdict

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Quantized inputs become the input times this power of two, which rounds nothing.
_SCALE = 2.0**12
_FLOAT_OPS = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}


def dequantize(model: bytes) -> bytes:
    """Replace products of integers by products in floating point, with the same weights.

    The graph's own factors after the products stay. Biases are rounded to steps that are finer
    than before, because the quantization step of inputs is constant now.
    """
    loaded = onnx.load_from_string(model)
    graph = loaded.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    consumers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(_SCALE), "esrt_scale"),
            numpy_helper.from_array(np.float32(1 / _SCALE), "esrt_step"),
        ]
    )
    nodes = []
    for node in graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            quantized, step, _ = node.output
            nodes.append(helper.make_node("Mul", [node.input[0], "esrt_scale"], [quantized]))
            nodes.append(helper.make_node("Identity", ["esrt_step"], [step]))
            continue
        if node.op_type in _FLOAT_OPS:
            data, weight, _, zero = node.input
            name = f"{weight}_float"
            if name not in weights:
                integers = numpy_helper.to_array(weights[weight]).astype(np.float32)
                offset = numpy_helper.to_array(weights[zero]).astype(np.float32)
                weights[name] = numpy_helper.from_array(integers - offset, name)
                graph.initializer.append(weights[name])
            product = helper.make_node(_FLOAT_OPS[node.op_type], [data, name], list(node.output))
            product.attribute.extend(node.attribute)
            nodes.append(product)
            for added in consumers[node.output[0]]:
                if added.op_type == "Add":
                    _float_bias(added, node.output[0], producers)
            continue
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    # Types of intermediate tensors are no longer right; ONNX Runtime infers them.
    del graph.value_info[:]
    return bytes(loaded.SerializeToString())


def _float_bias(added: onnx.NodeProto, product: str, producers: dict[str, onnx.NodeProto]) -> None:
    """Let the bias, which an addition takes as integers, stay in floating point."""
    (name,) = (name for name in added.input if name != product)
    while (node := producers[name]).op_type != "Cast":
        name = node.input[0]
    (to,) = (attribute for attribute in node.attribute if attribute.name == "to")
    to.i = onnx.TensorProto.FLOAT
