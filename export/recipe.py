"""Export of a checkpoint by a backend's recipe: load, wrap, lower, check, describe.

To add a backend, see `export.backends`.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint
from esrt.config import ModelConfig
from esrt.errors import ArtifactError
from esrt.manifest import Activations, Manifest, Precision, Quantization
from esrt.model import EdgeModel
from esrt.wire import CODEC_TABLES_FILE, Split
from export import parity
from export.artifact import artifact_folder, describe
from export.graph_io import Runner
from export.input_shapes import resolve_frames
from export.inspection import Inspection
from export.progress import report_progress
from export.quantization_error import QuantizationPlan, select_fp_layers
from export.tracing import DeviceGraph, load_edge_model

# Lines for the report, each a label and a text.
Notes = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Settings:
    """Options of an export.

    Attributes:
        precision: number format of the weights and the arithmetic.
        split: end of the graph.
        activations: quantization of the inputs of int8 linear layers; of no effect otherwise.
        lengths: mel frames that the graph must take, in rising order. A single length fixes the
            shape of the input; an empty tuple means every length.
    """

    precision: Precision = Precision.INT8
    split: Split = Split.QFORMER
    activations: Activations = Activations.DYNAMIC
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class ExportRecipe:
    """Recipe of a backend: how to make, run and inspect its artifacts.

    Attributes:
        kind: name of the format in manifests.
        title: name of the format in texts.
        entry: name of the file to load.
        tools: distributions whose versions the manifest records.
        activations: quantizations of activations that int8 offers, the default first.
        graph: builds the module to export; log-mel (1, mel bins, frames) to features
            (1, tokens, width).
        lower: writes that module to a file and returns lines for the report. Raises `CheckFailed`
            when the file does not compute what the settings require.
        load_runner: loads a file and returns the function that runs it.
        inspect: lists what a file computes. Takes the file, the manifest and a log-mel
            (mel bins, frames) of the longest input.
        token_ranges: with dynamic activations each token of an input has its own range; otherwise
            the whole input has one.
        native: the artifact runs here on the runtime that devices use. Otherwise, delegation and
            memory cannot be measured.
    """

    kind: str
    title: str
    entry: str
    tools: tuple[str, ...]
    activations: tuple[Activations, ...]
    graph: Callable[[EdgeModel, Settings], nn.Module]
    lower: Callable[[nn.Module, ModelConfig, Settings, QuantizationPlan, Path], Notes]
    load_runner: Callable[[Path], Runner]
    inspect: Callable[[Path, Manifest, Float32Array], Inspection]
    token_ranges: bool = True
    native: bool = True


@dataclass(frozen=True)
class Exported:
    """Manifest of a written artifact, and the backend's lines for the report."""

    manifest: Manifest
    notes: Notes


def export(
    recipe: ExportRecipe,
    checkpoint: Checkpoint,
    out: Path,
    precision: Precision,
    split: Split,
    *,
    seconds: Sequence[float] = (),
    activations: Activations | None = None,
) -> Exported:
    """Write an artifact, whole or not at all.

    Args:
        recipe: the backend's.
        checkpoint: the model to export.
        out: the artifact's folder; an existing artifact there is replaced.
        precision: ``int8`` quantizes the linear layers, weights per output channel.
        split: end of the graph, after the Q-Former or after the projector.
        seconds: lengths of speech that the graph must take; empty for those that the model was
            trained for.
        activations: quantization of the inputs of int8 layers; ``None`` for the recipe's default.

    Raises:
        ArtifactError: the recipe does not offer these activations, the model does not take a
            length, or ``out`` holds something other than an artifact.
        CheckFailed: the features differ from torch's beyond the bounds, or the backend found that
            the file does not compute what the settings require.
        CheckpointError: the checkpoint's weights do not fit its configuration.
    """
    activations = activations or recipe.activations[0]
    if activations not in recipe.activations:
        raise ArtifactError(
            f"{recipe.title} offers no int8 with {activations} activations.",
            f"Use one of: {', '.join(recipe.activations)}.",
        )
    lengths = resolve_frames(checkpoint.config, seconds)
    settings = Settings(precision, split, activations, lengths)
    report_progress("loading the weights")
    model = load_edge_model(checkpoint, lengths)
    with artifact_folder(out) as folder:
        path = folder / recipe.entry
        notes, quantization = _lower(recipe, model, settings, path)
        report_progress("comparing with torch")
        figures = parity.measure(DeviceGraph(model, split), recipe.load_runner(path), lengths)
        parity.check(figures, parity.BOUNDS[precision])
        codec_tables = checkpoint.codec_tables()
        if codec_tables is not None and codec_tables.split == split:
            shutil.copyfile(checkpoint.folder / CODEC_TABLES_FILE, folder / CODEC_TABLES_FILE)
        manifest = describe(
            checkpoint,
            model.config,
            folder,
            recipe.entry,
            kind=recipe.kind,
            precision=precision,
            split=split,
            parity=figures,
            tools=recipe.tools,
            lengths=lengths,
            quantization=quantization,
        )
        manifest.write(folder)
    return Exported(manifest, notes)


def _lower(
    recipe: ExportRecipe, model: EdgeModel, settings: Settings, path: Path
) -> tuple[Notes, Quantization | None]:
    """Write the file; the graph, which may hold copies of weights, is freed at the end."""
    graph = recipe.graph(model, settings)
    if settings.precision is not Precision.INT8:
        return recipe.lower(graph, model.config, settings, QuantizationPlan(), path), None
    report_progress("measuring the int8 error of each layer")
    plan = select_fp_layers(
        graph,
        model.config,
        settings.activations,
        settings.lengths,
        token_ranges=recipe.token_ranges,
    )
    notes = recipe.lower(graph, model.config, settings, plan, path)
    return notes, Quantization(settings.activations, plan.kept, plan.errors)
