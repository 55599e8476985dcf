"""Custom operators that convert between float32 and float16 inside an XNNPACK subgraph.

XNNPACK has such an operator, but ExecuTorch delegates torch's conversion only if the type stays the
same. Lowering a custom operator needs a partitioner configuration and a node visitor.
"""

from typing import Any

import torch
from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor, register_node_visitor
from executorch.backends.xnnpack.partition.config.generic_node_configs import (
    GenericNodePartitionerConfig,
)
from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import (
    XNNConvert,
    XNNGraph,
    XNode,
)
from torch import Tensor
from torch.fx import Node


@torch.library.custom_op("esrt::to_half", mutates_args=())
def to_half(values: Tensor) -> Tensor:
    """Convert to float16."""
    return values.half()


@torch.library.custom_op("esrt::to_float", mutates_args=())
def to_float(values: Tensor) -> Tensor:
    """Convert to float32."""
    return values.float()


to_half.register_fake(lambda values: torch.empty_like(values, dtype=torch.float16))
to_float.register_fake(lambda values: torch.empty_like(values, dtype=torch.float32))


class _ToHalf(GenericNodePartitionerConfig):  # type: ignore[misc]
    target_name = "to_half.default"

    def supported_precision_types(self) -> list[ConfigPrecisionType]:
        return [ConfigPrecisionType.FP32]


class _ToFloat(_ToHalf):
    target_name = "to_float.default"


# Configurations that the partitioner needs in addition to its own.
CONFIGS = [_ToHalf, _ToFloat]


class _Visitor(NodeVisitor):  # type: ignore[misc]
    def define_node(
        self, node: Node, xnn_graph: XNNGraph, vals_to_ids: dict[Node, int], debug_handle: int
    ) -> None:
        self.define_nodes_tensor_inputs_outputs(node, xnn_graph, vals_to_ids)
        (source,) = node.all_input_nodes
        convert: Any = XNNConvert(vals_to_ids[source], vals_to_ids[node], flags=0)
        xnn_graph.xnodes.append(XNode(convert, debug_handle))


@register_node_visitor
class _ToHalfVisitor(_Visitor):
    target = "esrt.to_half.default"


@register_node_visitor
class _ToFloatVisitor(_Visitor):
    target = "esrt.to_float.default"
