"""Operators of an ExecuTorch artifact, read from its file: XNNPACK's subgraphs and the rest."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import (
    XNNHeader,
    _get_schema_bytes,
)
from executorch.exir._serialize._flatbuffer import _flatc_decompile
from executorch.exir._serialize._program import PTEFile, deserialize_pte_binary
from executorch.exir.schema import DelegateCall, KernelCall, Tensor

from esrt.arrays import Float32Array
from esrt.errors import ArtifactError
from esrt.manifest import Manifest, Precision
from export.backends.xnnpack.delegation_report import PRODUCTS
from export.inspection import Inspection, Operation

_DELEGATE = "XnnpackBackend"
# XNN_FLAG_TRANSPOSE_WEIGHTS: the weights are (inputs, outputs).
_TRANSPOSED = 1
_NOT_INLINE = 2**64 - 1
_INT8_INPUTS = {"xnn_datatype_qint8", "xnn_datatype_qdint8", "xnn_datatype_qpint8"}
_INT8_WEIGHTS = {"xnn_datatype_qint8", "xnn_datatype_qcint8"}


class _Subgraph:
    """Subgraph that XNNPACK runs: its graph, and its constants inside or outside the payload."""

    def __init__(self, payload: bytes, file: PTEFile) -> None:
        header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
        start = header.flatbuffer_offset
        self._constants = payload[header.constant_data_offset :]
        self._named = file.named_data
        with TemporaryDirectory() as folder:
            schema, binary = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
            schema.write_bytes(_get_schema_bytes())
            binary.write_bytes(payload[start : start + header.flatbuffer_size])
            _flatc_decompile(folder, str(schema), str(binary))
            self._graph = json.loads((Path(folder) / "graph.json").read_text("utf-8"))
        self._values: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        for value in self._graph["xvalues"]:
            union = value["xvalue_union"]
            tensor = union.get("tensor_value", union)
            self._values[tensor["id_out"]] = tensor, union.get("quant_params", {})

    def operations(self, prefix: str) -> Iterator[Operation]:
        for index, node in enumerate(self._graph["xnodes"]):
            operator, union = _snake(node["xnode_union_type"]), node["xnode_union"]
            layer = f"{operator} {prefix}.{index}"
            if "output_id" not in union or operator not in (
                "fully_connected", "batch_matrix_multiply", "conv2d", "depthwise_conv2d"
            ):  # fmt: skip
                yield Operation(operator, layer)
                continue
            left = self._values[union["input1_id"]][0]
            right = self._values[union.get("filter_id", union.get("input2_id"))][0]
            integer = left["datatype"] in _INT8_INPUTS and right["datatype"] in _INT8_WEIGHTS
            outputs = self._values[union["output_id"]][0]["dims"]
            if "conv2d" in operator:
                inputs = union["kernel_height"] * union["kernel_width"]
                inputs *= union["group_input_channels"]
            else:
                inputs = left["dims"][-1]
            # A product with a single column is the mean of a layer norm (see `rewrite`).
            linear = operator == "fully_connected" and outputs[-1] > 1
            macs = int(np.prod(outputs)) * inputs
            name = operator if linear or operator != "fully_connected" else "layer_norm_mean"
            yield Operation(name, layer, integer=integer, linear=linear, macs=macs)

    def weights(self, prefix: str) -> Iterator[tuple[str, Float32Array]]:
        for index, node in enumerate(self._graph["xnodes"]):
            if node["xnode_union_type"] != "XNNFullyConnected":
                continue
            tensor, quantization = self._values[node["xnode_union"]["filter_id"]]
            if tensor["datatype"] != "xnn_datatype_qcint8":
                continue
            values = np.frombuffer(self._constant(tensor["constant_buffer_idx"]), np.int8)
            values = values[: np.prod(tensor["dims"])].reshape(tensor["dims"])
            scales = quantization["scale"] or np.frombuffer(
                self._constant(quantization["scale_buffer_idx"]), np.float32
            )
            scale = np.asarray(scales, np.float32)[: quantization["num_scales"] or None]
            channel = quantization["channel_dim"]
            dequantized = values * (scale[:, None] if channel == 0 else scale)
            if node["xnode_union"]["flags"] & _TRANSPOSED:
                dequantized = dequantized.T
            yield f"fully_connected {prefix}.{index}", dequantized.astype(np.float32)

    def _constant(self, index: int) -> bytes:
        constant = self._graph["constant_data"][index]
        if constant["offset"] != _NOT_INLINE:
            start: int = constant["offset"]
            return self._constants[start : start + constant["size"]]
        if self._named is None:
            raise ArtifactError(
                "The program refers to weights that it does not contain.",
                "Export the artifact again.",
            )
        entry = self._named.pte_data[constant["named_key"]]
        return bytes(self._named.buffers[entry.buffer_index])


def inspect(path: Path, manifest: Manifest, _: Float32Array) -> Inspection:
    """Read the program, whose shapes are those of the longest input."""
    file = deserialize_pte_binary(path.read_bytes())
    program = file.program
    (plan,) = program.execution_plan
    operations: list[Operation] = []
    subgraphs: dict[str, _Subgraph] = {}
    for chain in plan.chains:
        for index, instruction in enumerate(chain.instructions):
            call = instruction.instr_args
            if isinstance(call, DelegateCall):
                delegate = plan.delegates[call.delegate_index]
                if delegate.id != _DELEGATE:
                    operations.append(Operation(delegate.id, f"{delegate.id} {index}"))
                    continue
                payload = program.backend_delegate_data[delegate.processed.index].data
                prefix = str(len(subgraphs))
                subgraphs[prefix] = _Subgraph(bytes(payload), file)
                operations.extend(subgraphs[prefix].operations(prefix))
            elif isinstance(call, KernelCall):
                values = [plan.values[argument].val for argument in call.args]
                operations.append(_portable(plan.operators[call.op_index].name, index, values))
    kernels = sorted({f"{kernel.name}.{kernel.overload}" for kernel in plan.operators})

    def weights() -> Iterator[tuple[str, Float32Array]]:
        for prefix, subgraph in subgraphs.items():
            yield from subgraph.weights(prefix)

    fp16_requirement = ("a processor with fp16 arithmetic: ARMv8.2, in phones since about 2018",)
    return Inspection(
        tuple(operations),
        weights,
        (
            f"ExecuTorch {manifest.tools.get('executorch', '?')} or later with XNNPACK:"
            " arm64 (Android, iOS) or x86-64",
            *(fp16_requirement if manifest.precision is Precision.FP16 else ()),
            f"portable kernels: {', '.join(kernels) or 'none'}",
        ),
    )


def _portable(kernel: str, index: int, values: list[Any]) -> Operation:
    name = kernel.split("::")[-1].split(".")[0]
    product = name in PRODUCTS
    sizes = [value.sizes for value in values if isinstance(value, Tensor)]
    macs = 0
    if product and len(sizes) >= 2:
        output, first = sizes[-1], sizes[1] if name in ("addmm", "baddbmm") else sizes[0]
        inner = first[-1] if name != "convolution" else int(np.prod(sizes[1][1:]))
        macs = int(np.prod(output)) * inner
    linear = product and name not in ("bmm", "convolution")
    return Operation(name, f"{name} {index}", delegated=False, linear=linear, macs=macs)


def _snake(name: str) -> str:
    """Snake case of a node type: ``XNNFullyConnected`` is fully_connected."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name.removeprefix("XNN")).lower()
