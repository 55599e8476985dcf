"""Operators of a lowered ExecuTorch program that run in XNNPACK, and those that do not.

A linear layer on a portable kernel is correct but slow, and the device does not report it. So an
export fails when one is left outside of XNNPACK.
"""

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from executorch.exir.delegate import executorch_call_delegate
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from esrt.errors import CheckFailed
from esrt.manifest import Precision

# Operators with nearly all of the arithmetic.
PRODUCTS = frozenset({"linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "convolution"})
# Operators that compute no tensor.
_BOOKKEEPING = frozenset({"getitem", "sym_size"})


@dataclass(frozen=True)
class Summary:
    """Counts of operators.

    Attributes:
        subgraphs: subgraphs of XNNPACK.
        inside: operators in these subgraphs, by name.
        outside: operators on portable kernels, by name.
        float_linears: linear layers inside whose weights are not quantized.
    """

    subgraphs: int
    inside: dict[str, int]
    outside: dict[str, int]
    float_linears: int

    def __str__(self) -> str:
        """One line for the report."""
        portable = ", ".join(f"{count} {name}" for name, count in sorted(self.outside.items()))
        return (
            f"XNNPACK runs {sum(self.inside.values())} operators, subgraphs: {self.subgraphs};"
            f" portable kernels run: {portable or 'none'}"
        )


def summarize(program: ExportedProgram) -> Summary:
    """Count the operators of a program that was lowered to XNNPACK."""
    module = program.graph_module
    inside: Counter[str] = Counter()
    outside: Counter[str] = Counter()
    subgraphs = float_linears = 0
    for node in _calls(module.graph):
        if node.target is executorch_call_delegate:
            subgraphs += 1
            lowered = getattr(module, str(node.args[0]))
            for inner in _calls(lowered.original_module.graph):
                inside[_name(inner)] += 1
                float_linears += _name(inner) == "linear" and not _quantized(inner)
        else:
            outside[_name(node)] += 1
    for name in _BOOKKEEPING:
        del inside[name], outside[name]
    return Summary(subgraphs, dict(inside), dict(outside), float_linears)


def check(summary: Summary, precision: Precision, kept: int = 0) -> None:
    """Fail an export that would be slow.

    Args:
        summary: counts of the lowered program.
        precision: precision of the export.
        kept: number of linear layers of an int8 program that should stay in floating point.

    Raises:
        CheckFailed: a matrix product or convolution would run on a portable kernel, or an int8
            program has other linear layers in floating point than ``kept``.
    """
    products = {name: count for name, count in summary.outside.items() if name in PRODUCTS}
    if products:
        named = ", ".join(f"{count} {name}" for name, count in sorted(products.items()))
        raise CheckFailed(
            f"XNNPACK does not take {named}, which would run on portable kernels.",
            "Nothing was written; rewrite them as in export/backends/xnnpack/rewrite.py.",
        )
    if precision is Precision.INT8 and summary.float_linears != kept:
        raise CheckFailed(
            f"{summary.float_linears} linear layers of the int8 program multiply in floating"
            f" point, instead of {kept}.",
            "Nothing was written; check the executorch version against the lock.",
        )


def _calls(graph: Graph) -> Iterator[Node]:
    return (node for node in graph.nodes if node.op == "call_function")


def _name(node: Node) -> str:
    """Short name of a node's operator: ``aten.slice_copy.Tensor`` is slice_copy."""
    if isinstance(node.target, str) or node.target is operator.getitem:
        return "getitem"
    name: str = node.target.__name__
    for namespace in ("aten.", "quantized_decomposed."):
        name = name.removeprefix(namespace)
    return name.split(".")[0]


def _quantized(linear: Node) -> bool:
    weight = linear.args[1]
    return isinstance(weight, Node) and "dequantize" in str(weight.target)
