"""Operations of a Core ML artifact, noted in one run of its program by the interpreter.

Core ML has optimized kernels for every operation. The device decides which of its units (CPU, GPU,
Neural Engine) runs an operation; this cannot be known here.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from esrt.arrays import Float32Array
from esrt.manifest import Manifest
from export.backends.coreml.mil_interpreter import Arguments, Program, Step, compute
from export.graph_io import INPUT
from export.inspection import Inspection, Operation

_INT8_WEIGHT, _INT8_INPUT = "constexpr_affine_dequantize", "dequantize"


def inspect(path: Path, _: Manifest, mel: Float32Array) -> Inspection:
    """Evaluate the program once on ``mel`` (mel bins, frames) and note each operation."""
    program = Program(path)
    producers = {step.output: step.type for step in program.steps}
    operations: list[Operation] = []

    def note(step: Step, arguments: Arguments, result: Tensor) -> None:
        integer = step.type == "linear" and (
            producers.get(step.inputs["weight"][0]) == _INT8_WEIGHT
            and producers.get(step.inputs["x"][0]) == _INT8_INPUT
        )
        operations.append(
            Operation(
                step.type,
                step.output,
                integer=integer,
                linear=step.type == "linear",
                macs=result.numel() * _macs_per_output(step, arguments),
            )
        )

    program.run({INPUT: mel[None]}, note)
    requirements = [program.requirements]
    if any(operation.integer for operation in operations):
        requirements.append(
            "A17 Pro, M4 or newer for int8 products; older chips compute them in fp16"
        )
    return Inspection(tuple(operations), lambda: _weights(program), tuple(requirements))


def _macs_per_output(step: Step, arguments: Arguments) -> int:
    """Multiply-adds for each number of the result."""
    if step.type in ("linear", "conv"):
        return int(arguments["weight"][0].numel())
    if step.type == "matmul":
        return int(arguments["x"].shape[-2 if arguments["transpose_x"] else -1])
    return 0


def _weights(program: Program) -> Iterator[tuple[str, Float32Array]]:
    """Int8 matrices (outputs, inputs), as the program dequantizes them."""
    with torch.inference_mode():
        for step in program.of_type(_INT8_WEIGHT):
            yield (
                step.output,
                compute(step, program.arguments(step, {})).float().numpy(),
            )
