"""Exports the device's part of a checkpoint to ExecuTorch: ``python export/to_executorch.py``.

Rewrite in operators that XNNPACK takes, optionally quantize, lower, check what was left outside of
XNNPACK, compare with torch on the bundled clips, describe. Nothing is written unless the checks
hold.
"""

import sys
from pathlib import Path

from torch import nn

if __package__ is None:  # run as a file: the repository, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from esrt.checkpoint import Checkpoint
from esrt.manifest import Activations, Manifest, Precision
from esrt.model import EdgeModel
from esrt.wire import Split
from export import cli, quantization_error
from export.backends.xnnpack import delegation_report, lower
from export.backends.xnnpack.rewrite import XnnpackEncoder
from export.progress import report_progress
from export.recipe import ExportRecipe, LoweredProgram, Settings, export
from export.tracing import HalfGraph, trace


def export_executorch(
    checkpoint: Checkpoint, out: Path, precision: Precision, split: Split
) -> Manifest:
    """Write an ExecuTorch artifact; see :func:`export.recipe.export`."""
    return export(RECIPE, checkpoint, out, precision, split).manifest


def _lower(model: EdgeModel, settings: Settings, path: Path) -> LoweredProgram:
    config, precision = model.config, settings.precision
    graph: nn.Module = XnnpackEncoder(
        model, settings.split, half_attention=precision is Precision.INT8
    )
    if precision is Precision.FP16:
        graph = HalfGraph(graph)
    int8 = quantization_error.select_fp_layers(graph, config, settings)
    report_progress("tracing")
    program = trace(graph, config)
    if precision is Precision.INT8:
        report_progress("quantizing")
        program = trace(
            lower.quantized(program, int8.mels, settings.activations, int8.kept), config
        )
    report_progress("lowering to XNNPACK")
    lowered = lower.lower(program)
    summary = delegation_report.summarize(lowered.exported_program())
    delegation_report.check(summary, precision, len(int8.kept))
    report_progress("writing")
    path.write_bytes(lowered.to_executorch().buffer)
    run = lower.runner(path, config.max_frames)
    return LoweredProgram(run, (("delegation", str(summary)),), int8.kept, int8.errors)


RECIPE = ExportRecipe(
    kind="executorch",
    title="ExecuTorch",
    entry="model.pte",
    tools=("torch", "transformers", "torchao", "executorch"),
    lower=_lower,
    activations=(Activations.DYNAMIC, Activations.STATIC),
)

if __name__ == "__main__":
    cli.run(RECIPE)
