"""Operators of an artifact's graph, in the same form for every format."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from esrt.arrays import Float32Array
from esrt.manifest import Activations, Manifest, Precision

# Number of layers that a problem names.
_LISTED = 6
# Yields the name of a layer in the artifact and its dequantized int8 weights, (outputs, inputs).
Weights = Callable[[], Iterator[tuple[str, Float32Array]]]


@dataclass(frozen=True)
class Operation:
    """Operator of a graph.

    Attributes:
        name: type of the operator.
        layer: name of the operator in the artifact.
        delegated: an optimized kernel runs the operator.
        integer: the operator multiplies int8 by int8.
        linear: the operator is a linear layer.
        macs: multiply-adds at the longest input.
    """

    name: str
    layer: str
    delegated: bool = True
    integer: bool = False
    linear: bool = False
    macs: int = 0


@dataclass(frozen=True)
class Inspection:
    """Contents of an artifact.

    Attributes:
        operations: operators of the graph.
        weights: int8 weights of the linear layers.
        requirements: requirements on the device.
    """

    operations: tuple[Operation, ...]
    weights: Weights
    requirements: tuple[str, ...]


def share(part: Iterable[Operation], whole: Sequence[Operation]) -> float:
    """Share of all multiply-adds, from 0 to 1."""
    macs = sum(operation.macs for operation in whole)
    return sum(operation.macs for operation in part) / max(1, macs)


def list_operators(operations: Iterable[Operation]) -> str:
    """List operators by type, those with most multiply-adds first: ``4 bmm, 2 softmax``."""
    count: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    for operation in operations:
        count[operation.name] += 1
        macs[operation.name] += operation.macs
    names = sorted(count, key=lambda name: (-macs[name], name))
    return ", ".join(f"{count[name]} {name}" for name in names) or "none"


def only_weights(manifest: Manifest) -> bool:
    """Whether only the weights of an int8 artifact are int8, and all products are floating."""
    quantization = manifest.quantization
    return quantization is not None and quantization.activations is Activations.FLOAT


def find_problems(inspection: Inspection, manifest: Manifest) -> list[str]:
    """List the reasons why the artifact is slower or larger than its manifest promises."""
    problems = []
    linear = [operation for operation in inspection.operations if operation.linear]
    portable = [operation.layer for operation in linear if not operation.delegated]
    if portable:
        problems.append(
            f"{len(portable)} linear layers run on portable kernels: {_first(portable)}."
        )
    if manifest.precision is not Precision.INT8:
        return problems
    kept = len(manifest.quantization.kept) if manifest.quantization else 0
    if only_weights(manifest):
        floats = len(linear) - sum(1 for _ in inspection.weights())
        if floats > kept or floats == len(linear):
            problems.append(
                f"{floats} of {len(linear)} linear layers have floating-point weights, but the"
                f" manifest of the int8 artifact lists {kept}."
            )
        return problems
    floating = [operation.layer for operation in linear if not operation.integer]
    if len(floating) > kept or len(floating) == len(linear):
        problems.append(
            f"{len(floating)} of {len(linear)} linear layers multiply in floating point, but the"
            f" manifest of the int8 artifact lists {kept}: {_first(floating)}."
        )
    return problems


def _first(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
