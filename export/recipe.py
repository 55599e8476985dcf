"""What all targets share: load, wrap, lower, check, describe.

To add a target: a file beside to_onnx.py with a `ExportRecipe`.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from esrt.checkpoint import Checkpoint
from esrt.errors import ArtifactError
from esrt.manifest import Activations, Kind, Manifest, Precision, Quantization
from esrt.model import EdgeModel
from esrt.wire import CODEC_TABLES_FILE, Split
from export import parity
from export.artifact import artifact_folder, describe
from export.input_shapes import resolve_frames, restrict_lengths
from export.progress import report_progress
from export.tracing import DeviceGraph


@dataclass(frozen=True)
class Settings:
    """What to make of a model.

    ``activations`` matter to ``int8`` only. ``lengths`` are the mel frames that the graph must
    take, rising: one of them fixes the input's shape; none means every length that the model
    takes.
    """

    precision: Precision = Precision.INT8
    split: Split = Split.QFORMER
    activations: Activations = Activations.DYNAMIC
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class LoweredProgram:
    """A file that was written.

    ``run`` runs it, ``notes`` are lines for the report as (label, text), ``kept`` and ``errors``
    are those of `esrt.manifest.Quantization`.
    """

    run: parity.Runner
    notes: tuple[tuple[str, str], ...] = ()
    kept: tuple[str, ...] = ()
    errors: dict[str, float] = field(default_factory=dict)


# `export.input_shapes.restrict_lengths` has already limited the model's configuration.
Lower = Callable[[EdgeModel, Settings, Path], LoweredProgram]


@dataclass(frozen=True)
class ExportRecipe:
    """A format to export to.

    ``lower`` writes the model up to the split, in a precision, to a file and returns how to run
    it; it raises `CheckFailed` when the result is not what was asked for. ``tools`` are the
    distributions that the manifest names. ``activations`` are those that int8 offers, the default
    first.
    """

    kind: Kind
    title: str
    entry: str
    tools: tuple[str, ...]
    lower: Lower
    activations: tuple[Activations, ...] = (Activations.FLOAT,)


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and the target's lines for the report."""

    manifest: Manifest
    notes: tuple[tuple[str, str], ...]


def export(
    target: ExportRecipe,
    checkpoint: Checkpoint,
    out: Path,
    precision: Precision,
    split: Split,
    *,
    seconds: Sequence[float] = (),
    activations: Activations | None = None,
) -> Exported:
    """Write an artifact.

    Args:
        target: the format.
        checkpoint: what to export.
        out: the artifact's folder; an existing one is replaced.
        precision: ``int8`` quantizes the linear layers, weights per channel.
        split: the graph's end, after the Q-Former or after the projector.
        seconds: the lengths to make it for; none for what the model was trained for.
        activations: what int8 layers make of their inputs; none for the target's default.

    Raises:
        ArtifactError: the target does not offer these activations, or the model not this length.
        CheckFailed: the graph's features differ from torch's beyond the bounds, or the target
            found that it does not compute as it should.
        CheckpointError: the checkpoint's weights do not fit.
    """
    activations = activations or target.activations[0]
    if activations not in target.activations:
        raise ArtifactError(
            f"{target.title} offers no int8 with {activations} activations.",
            f"Use one of: {', '.join(target.activations)}.",
        )
    lengths = resolve_frames(checkpoint.config, seconds)
    report_progress("loading the weights")
    model = checkpoint.edge_model()
    model.config = restrict_lengths(model.config, lengths)
    settings = Settings(precision, split, activations, lengths)
    with artifact_folder(out) as folder:
        lowered = target.lower(model, settings, folder / target.entry)
        report_progress("comparing with torch")
        figures = parity.measure(DeviceGraph(model, split), lowered.run, lengths)
        parity.check(figures, parity.BOUNDS[precision])
        codec_tables = checkpoint.codec_tables()
        if codec_tables is not None and codec_tables.split == split:
            shutil.copyfile(checkpoint.folder / CODEC_TABLES_FILE, folder / CODEC_TABLES_FILE)
        manifest = describe(
            checkpoint,
            model.config,
            folder,
            target.entry,
            kind=target.kind,
            precision=precision,
            split=split,
            parity=figures,
            tools=target.tools,
            lengths=lengths,
            quantization=Quantization(activations, lowered.kept, lowered.errors)
            if precision is Precision.INT8
            else None,
        )
        manifest.write(folder)
    return Exported(manifest, lowered.notes)
