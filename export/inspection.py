"""What an artifact's graph computes, and where: the same facts for every format."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from esrt.arrays import Float32Array
from esrt.manifest import Manifest

# A layer's name in the artifact, and its weights as the artifact has them: (outputs, inputs).
Weights = Callable[[], Iterator[tuple[str, Float32Array]]]


@dataclass(frozen=True)
class Operation:
    """One operator of a graph.

    ``delegated``: an optimized kernel runs it. ``integer``: it multiplies int8. ``linear``: it is a
    product with weights, not a convolution. ``macs`` are its multiply-adds at the longest input.
    """

    name: str
    layer: str
    delegated: bool = True
    integer: bool = False
    linear: bool = False
    macs: int = 0


@dataclass(frozen=True)
class Inspection:
    """A graph's operators, its int8 weights, and what a device must have to run it."""

    operations: tuple[Operation, ...]
    weights: Weights
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """A part of all operators and of all multiply-adds, each from 0 to 1."""

    operators: float
    macs: float

    def __str__(self) -> str:
        """One line for the report."""
        return f"{self.operators:.1%} of operators, {self.macs:.1%} of multiply-adds"


def share(operations: Iterable[Operation], of: Iterable[Operation]) -> Share:
    """How much of a graph some of its operations are."""
    part, whole = list(operations), list(of)
    macs = sum(operation.macs for operation in whole)
    return Share(
        len(part) / max(1, len(whole)), sum(operation.macs for operation in part) / max(1, macs)
    )


def counted(operations: Iterable[Operation]) -> str:
    """Operators by name, the one with most multiply-adds first: ``4 bmm (12.0 % of ...)``."""
    number: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    for operation in operations:
        number[operation.name] += 1
        macs[operation.name] += operation.macs
    names = sorted(number, key=lambda name: (-macs[name], name))
    return ", ".join(f"{number[name]} {name}" for name in names) or "none"


def problems(inspection: Inspection, manifest: Manifest) -> list[str]:
    """Why the artifact would be slower than it says; empty when it would not."""
    found = []
    linear = [operation for operation in inspection.operations if operation.linear]
    portable = [operation.layer for operation in linear if not operation.delegated]
    if portable:
        found.append(f"{len(portable)} linear layers run on portable kernels: {_some(portable)}.")
    if manifest.precision != "int8":
        return found
    weights_only = (
        manifest.quantization is not None and manifest.quantization.activations == "float"
    )
    floating = [operation.layer for operation in linear if not operation.integer]
    kept = len(manifest.quantization.kept) if manifest.quantization else 0
    if not weights_only and (len(floating) > kept or len(floating) == len(linear)):
        found.append(
            f"The int8 graph multiplies {len(floating)} of {len(linear)} linear layers in floating"
            f" point, and its manifest names {kept}: {_some(floating)}."
        )
    return found


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
