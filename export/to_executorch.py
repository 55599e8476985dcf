"""Exports the device's part of a checkpoint to ExecuTorch: ``python export/to_executorch.py``.

Rewrite in operators that XNNPACK takes, optionally quantize, lower, check what was left outside of
XNNPACK, compare with torch on the bundled clips, describe. Nothing is written unless the checks
hold.
"""

import sys
from pathlib import Path

if __package__ is None:  # run as a file: the repository, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from esrt.checkpoint import Checkpoint
from esrt.manifest import Manifest, SplitPoint
from esrt.model import EdgeModel
from export import command, delegation, parity, xnnpack
from export.delegable import DelegableGraph
from export.graph import trace
from export.target import Lowered, Precision, Target, export


def export_executorch(
    checkpoint: Checkpoint, out: Path, precision: Precision, split: SplitPoint
) -> Manifest:
    """Write an ExecuTorch artifact; see :func:`export.target.export`."""
    return export(TARGET, checkpoint, out, precision, split).manifest


def _lower(model: EdgeModel, split: SplitPoint, precision: Precision, path: Path) -> Lowered:
    config = model.config
    program = trace(DelegableGraph(model, split), config)
    if precision is Precision.INT8:
        program = trace(xnnpack.quantized(program, parity.sample_mels(config)), config)
    lowered = xnnpack.lower(program)
    summary = delegation.summarize(lowered.exported_program())
    delegation.check(summary, precision)
    path.write_bytes(lowered.to_executorch().buffer)
    run = xnnpack.runner(path, config.max_frames)
    return Lowered(run, (("delegation", str(summary)),))


TARGET = Target(
    kind="executorch",
    title="ExecuTorch",
    entry="model.pte",
    tools=("torch", "transformers", "torchao", "executorch"),
    lower=_lower,
)

if __name__ == "__main__":
    command.run(TARGET)
