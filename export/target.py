"""What all targets share: load, wrap, lower, check, describe.

To add a target: a file beside to_onnx.py with a `Target`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from esrt.checkpoint import Checkpoint
from esrt.manifest import Kind, Manifest, SplitPoint
from esrt.model import EdgeModel
from export import parity
from export.artifact import artifact_folder, describe
from export.graph import DeviceGraph


class Precision(StrEnum):
    """What the weights of linear layers, and their products, are computed in."""

    FP32 = "fp32"
    INT8 = "int8"


class Split(StrEnum):
    """Where the cloud takes over."""

    QFORMER = "qformer"
    ADAPTER = "adapter"


@dataclass(frozen=True)
class Lowered:
    """A file that was written: how to run it, and lines for the report as (label, text)."""

    run: parity.Runner
    notes: tuple[tuple[str, str], ...] = ()


Lower = Callable[[EdgeModel, SplitPoint, Precision, Path], Lowered]


@dataclass(frozen=True)
class Target:
    """A format to export to.

    ``lower`` writes the model up to the split, in a precision, to a file and returns how to run
    it; it raises `CheckFailed` when the result is not what was asked for. ``tools`` are the
    distributions that the manifest names.
    """

    kind: Kind
    title: str
    entry: str
    tools: tuple[str, ...]
    lower: Lower


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and the target's lines for the report."""

    manifest: Manifest
    notes: tuple[tuple[str, str], ...]


def export(
    target: Target, checkpoint: Checkpoint, out: Path, precision: Precision, split: SplitPoint
) -> Exported:
    """Write an artifact.

    Args:
        target: the format.
        checkpoint: what to export.
        out: the artifact's folder; an existing one is replaced.
        precision: ``int8`` quantizes the linear layers: weights per channel, activations
            dynamically.
        split: the graph's end, after the Q-Former or after the projector.

    Raises:
        CheckFailed: the graph's features differ from torch's beyond the bounds, or the target
            found that it does not compute as it should.
        CheckpointError: the checkpoint's weights do not fit.
    """
    model = checkpoint.edge_model()
    with artifact_folder(out) as folder:
        lowered = target.lower(model, split, precision, folder / target.entry)
        figures = parity.measure(DeviceGraph(model, split), lowered.run)
        parity.check(figures, parity.BOUNDS[precision.value])
        manifest = describe(
            checkpoint,
            folder,
            target.entry,
            kind=target.kind,
            precision=precision.value,
            split=split,
            parity=figures,
            tools=target.tools,
        )
        manifest.write(folder)
    return Exported(manifest, lowered.notes)
