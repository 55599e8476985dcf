"""What a Core ML artifact computes, by one run of its program in the evaluator.

Core ML has optimized kernels for every operation. On which of a device's units each runs, only the
device tells.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from esrt.arrays import Float32Array
from esrt.manifest import Manifest
from export.backends.coreml.mil_interpreter import Arguments, Program, Step, compute
from export.inspection import Inspection, Operation
from export.tracing import INPUT

_INT8_WEIGHT, _INT8_INPUT = "constexpr_affine_dequantize", "dequantize"


def inspect(path: Path, _: Manifest, mel: Float32Array) -> Inspection:
    """Evaluate the program once on ``mel`` (128, frames) and note what ran."""
    program = Program(path)
    makers = {step.output: step.type for step in program.steps}
    operations: list[Operation] = []

    def note(step: Step, arguments: Arguments, result: Tensor) -> None:
        integer = step.type == "linear" and (
            makers.get(step.inputs["weight"][0]) == _INT8_WEIGHT
            and makers.get(step.inputs["x"][0]) == _INT8_INPUT
        )
        operations.append(
            Operation(
                step.type,
                step.output,
                integer=integer,
                linear=step.type == "linear",
                macs=result.numel() * _depth(step, arguments),
            )
        )

    program.run({INPUT: mel[None]}, note)
    needs = [program.needs]
    if any(operation.integer for operation in operations):
        needs.append("int8 products: A17 Pro, M4 or newer; others multiply the same in fp16")
    return Inspection(tuple(operations), lambda: _weights(program), tuple(needs))


def _depth(step: Step, arguments: Arguments) -> int:
    """The multiply-adds behind each number of the result."""
    if step.type in ("linear", "conv"):
        return int(arguments["weight"][0].numel())
    if step.type == "matmul":
        return int(arguments["x"].shape[-2 if arguments["transpose_x"] else -1])
    return 0


def _weights(program: Program) -> Iterator[tuple[str, Float32Array]]:
    """The int8 matrices, (outputs, inputs), as the program dequantizes them."""
    with torch.inference_mode():
        for step in program.of_type(_INT8_WEIGHT):
            yield (
                step.output,
                compute(step, program.arguments(step, {})).float().numpy(),
            )
