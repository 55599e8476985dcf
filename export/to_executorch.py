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
from esrt.manifest import Manifest, SplitPoint
from esrt.model import EdgeModel
from export import command, delegation, layers, xnnpack
from export.delegable import DelegableGraph
from export.graph import HalfGraph, trace
from export.progress import step
from export.target import Activations, Lowered, Precision, Settings, Target, export


def export_executorch(
    checkpoint: Checkpoint, out: Path, precision: Precision, split: SplitPoint
) -> Manifest:
    """Write an ExecuTorch artifact; see :func:`export.target.export`."""
    return export(TARGET, checkpoint, out, precision, split).manifest


def _lower(model: EdgeModel, settings: Settings, path: Path) -> Lowered:
    config, precision = model.config, settings.precision
    graph: nn.Module = DelegableGraph(
        model, settings.split, half_attention=precision is Precision.INT8
    )
    if precision is Precision.FP16:
        graph = HalfGraph(graph)
    int8 = layers.judge(graph, config, settings)
    step("tracing")
    program = trace(graph, config)
    if precision is Precision.INT8:
        step("quantizing")
        program = trace(
            xnnpack.quantized(program, int8.mels, settings.activations, int8.kept), config
        )
    step("lowering to XNNPACK")
    lowered = xnnpack.lower(program)
    summary = delegation.summarize(lowered.exported_program())
    delegation.check(summary, precision, len(int8.kept))
    step("writing")
    path.write_bytes(lowered.to_executorch().buffer)
    run = xnnpack.runner(path, config.max_frames)
    return Lowered(run, (("delegation", str(summary)),), int8.kept, int8.errors)


TARGET = Target(
    kind="executorch",
    title="ExecuTorch",
    entry="model.pte",
    tools=("torch", "transformers", "torchao", "executorch"),
    lower=_lower,
    activations=(Activations.DYNAMIC, Activations.STATIC),
)

if __name__ == "__main__":
    command.run(TARGET)
