"""Which operators of a lowered ExecuTorch program run in XNNPACK, and which were left behind.

A linear layer on a portable kernel is correct and slow, and nothing says so on the device; so an
export that leaves one fails.
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

# What carries nearly all of the arithmetic.
PRODUCTS = frozenset({"linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "convolution"})
# Tensors are not computed by these.
_BOOKKEEPING = frozenset({"getitem", "sym_size"})


@dataclass(frozen=True)
class Summary:
    """Operators by name, inside XNNPACK and outside; ``float_linears`` of those inside."""

    subgraphs: int
    inside: dict[str, int]
    outside: dict[str, int]
    float_linears: int

    def __str__(self) -> str:
        """One line for the report."""
        left = ", ".join(f"{count} {name}" for name, count in sorted(self.outside.items()))
        return (
            f"{sum(self.inside.values())} operators in {self.subgraphs} XNNPACK subgraphs;"
            f" outside: {left or 'none'}"
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
        summary: what was delegated.
        precision: what was asked for.
        kept: how many linear layers of an int8 program are meant to be in floating point.

    Raises:
        CheckFailed: a product was left to a portable kernel, or an int8 program has linear layers
            in floating point.
    """
    left = {name: count for name, count in summary.outside.items() if name in PRODUCTS}
    if left:
        named = ", ".join(f"{count} {name}" for name, count in sorted(left.items()))
        raise CheckFailed(
            f"XNNPACK does not take {named}, which would run on portable kernels.",
            "Nothing was written; write them as export/backends/xnnpack/rewrite.py does.",
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
    """``aten.slice_copy.Tensor`` is slice_copy; Python functions are their own names."""
    if isinstance(node.target, str) or node.target is operator.getitem:
        return "getitem"
    name: str = node.target.__name__
    for namespace in ("aten.", "quantized_decomposed."):
        name = name.removeprefix(namespace)
    return name.split(".")[0]


def _quantized(linear: Node) -> bool:
    weight = linear.args[1]
    return isinstance(weight, Node) and "dequantize" in str(weight.target)
