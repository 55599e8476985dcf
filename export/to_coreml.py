"""Exports the device's part of a checkpoint to Core ML: ``python export/to_coreml.py``.

Trace, convert, optionally quantize, save, read the saved program back, check it, compare it with
torch on the bundled clips, describe. The comparison evaluates the program with `mil_interpreter`,
so it needs no Mac. Nothing is written unless the checks hold.
"""

import logging
import os
import sys
from pathlib import Path

from esrt.arrays import Float32Array

if __package__ is None:  # run as a file: the repository, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # coremltools tells at import what it cannot do here, and draws a bar for each of its steps.
    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"

from esrt.checkpoint import Checkpoint
from esrt.errors import CheckFailed
from esrt.manifest import Activations, Manifest, Precision
from esrt.model import EdgeModel
from esrt.wire import Split
from export import cli, parity, quantization_error
from export.backends.coreml import lower
from export.backends.coreml.mil_interpreter import Program
from export.progress import report_progress
from export.recipe import ExportRecipe, LoweredProgram, Settings, export
from export.tracing import INPUT, OUTPUT


def export_coreml(
    checkpoint: Checkpoint, out: Path, precision: Precision, split: Split
) -> Manifest:
    """Write a Core ML artifact; see :func:`export.recipe.export`."""
    return export(RECIPE, checkpoint, out, precision, split).manifest


def _lower(model: EdgeModel, settings: Settings, path: Path) -> LoweredProgram:
    graph = lower.CoreMLGraph(model, settings.split)
    int8 = quantization_error.select_fp_layers(graph, model.config, settings)
    static = settings.activations is Activations.STATIC
    ranges = lower.input_ranges(graph, int8.mels) if int8.mels and static else {}
    lower.convert(graph, settings, ranges, int8.kept).save(str(path))
    for part in path.rglob("*"):  # coremltools leaves some to their owner alone
        part.chmod(0o755 if part.is_dir() else 0o644)
    report_progress("reading the program back")
    program = Program(path)
    check(program, settings, int8.kept)
    products = len(program.of_type("linear"))
    notes = (
        ("program", f"{len(program.steps)} operations, {products} of them linear layers"),
        ("needs", program.needs),
    )
    return LoweredProgram(runner(program), notes, int8.kept, int8.errors)


def runner(program: Program) -> parity.Runner:
    """Run a program by its evaluator."""

    def run(mel: Float32Array) -> Float32Array:
        return program.run({INPUT: mel})[OUTPUT]

    return run


def check(program: Program, settings: Settings, kept: tuple[str, ...]) -> None:
    """Fail an int8 export whose linear layers are not int8, but for those that are kept.

    Raises:
        CheckFailed: it names the weights and inputs that are in floating point.
    """
    if settings.precision is not Precision.INT8:
        return
    allowed = {lower.weight_name(name) for name in kept}
    makers = {each.output: each.type for each in program.steps}
    left = []
    for linear in program.of_type("linear"):
        (weight,), (values,) = linear.inputs["weight"], linear.inputs["x"]
        if makers.get(weight) != "constexpr_affine_dequantize":
            left += [weight] if weight not in allowed else []
        elif settings.activations is Activations.STATIC and makers.get(values) != "dequantize":
            left.append(values)
    if left:
        raise CheckFailed(
            f"The int8 program keeps in floating point: {', '.join(left)}.",
            "Nothing was written; check the coremltools version against the lock.",
        )


RECIPE = ExportRecipe(
    kind="coreml",
    title="Core ML",
    entry="model.mlpackage",
    tools=("torch", "transformers", "coremltools"),
    lower=_lower,
    activations=(Activations.FLOAT, Activations.STATIC),
)

if __name__ == "__main__":
    cli.run(RECIPE)
