"""Diagnosis of an exported artifact: what it computes, and its comparison with its checkpoint."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from esrt import bundled
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.errors import ArtifactError, CheckFailed, EsrtError
from esrt.features import FRAMES_PER_SECOND, HOP, log_mel
from esrt.manifest import Activations, FrontEnd, Manifest, Precision
from esrt.model import EdgeModel
from export import parity, peak_memory, quantization_error, translation_parity
from export.backends import get_recipe
from export.checkpoint_source import open_source
from export.inspection import Inspection, find_problems, list_operators, only_weights, share
from export.recipe import ExportRecipe, Settings
from export.tracing import DeviceGraph, load_edge_model


@dataclass(frozen=True)
class Diagnosis:
    """Result of an examination.

    Attributes:
        artifact: the artifact's folder.
        kind: format of the artifact.
        precision: precision that the manifest declares.
        size: bytes of all files.
        peak_memory: bytes that a run of the longest input needs; ``None`` if not measurable here.
        delegated: share of the multiply-adds in optimized kernels; ``None`` if only the device
            decides this.
        integer: share of the multiply-adds that multiply int8 by int8.
        not_delegated: operators on portable kernels.
        floating: operators that multiply in floating point.
        linear_layers: number of linear layers.
        only_weights: only the weights of linear layers are int8; all products are floating.
        kept: linear layers that the manifest names as floating-point layers.
        needs: requirements on the device.
        layer_errors: int8 error of each layer; empty without a checkpoint.
        parity: comparison of features with torch's; empty without a checkpoint.
        texts: comparison of translations with torch's; empty without a checkpoint.
        problems: reasons not to ship the artifact.
    """

    artifact: str
    kind: str
    precision: Precision
    size: int
    peak_memory: int | None
    delegated: float | None
    integer: float
    not_delegated: str
    floating: str
    linear_layers: int
    only_weights: bool
    kept: tuple[str, ...]
    needs: tuple[str, ...]
    layer_errors: dict[str, float]
    parity: dict[str, float]
    texts: dict[str, Any]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Comparison:
    """Comparison with a checkpoint; empty without one. Attributes as in `Diagnosis`."""

    layer_errors: dict[str, float] = field(default_factory=dict)
    parity: dict[str, float] = field(default_factory=dict)
    texts: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def inspect_artifact(folder: Path, manifest: Manifest, checkpoint: Checkpoint | None) -> Diagnosis:
    """Examine an artifact.

    Args:
        folder: the artifact's folder.
        manifest: the artifact's manifest, as `read_manifest` verified it.
        checkpoint: source of the artifact. Without it, nothing is compared with torch.

    Raises:
        ArtifactError: the artifact is damaged, of an unknown kind, or made from another checkpoint.
    """
    recipe = get_recipe(manifest.kind)
    if checkpoint is not None and checkpoint.fingerprint != manifest.fingerprint:
        raise ArtifactError(
            f"{folder} has fingerprint {manifest.fingerprint}, the checkpoint"
            f" {checkpoint.fingerprint}.",
            "Pass the --checkpoint that the artifact was exported from.",
        )
    path = folder / manifest.entry
    try:
        inspection = recipe.inspect(path, manifest, _speech(manifest.front_end))
    except EsrtError:
        raise
    except Exception as error:  # the formats' own errors have no common base
        raise ArtifactError(
            f"{path} cannot be read: {error}.", "Export the artifact again."
        ) from error
    comparison = _Comparison()
    if checkpoint is not None:
        comparison = _compare(recipe, manifest, path, inspection, checkpoint)
    operations = inspection.operations
    delegated = [operation for operation in operations if operation.delegated]
    integer = [operation for operation in operations if operation.integer]
    return Diagnosis(
        artifact=str(folder),
        kind=manifest.kind,
        precision=manifest.precision,
        size=sum((folder / name).stat().st_size for name in manifest.files),
        peak_memory=peak_memory.peak_bytes(folder) if recipe.native else None,
        delegated=share(delegated, operations) if recipe.native else None,
        integer=share(integer, operations),
        not_delegated=list_operators(item for item in operations if not item.delegated),
        floating=list_operators(item for item in operations if item.macs and not item.integer),
        linear_layers=sum(item.linear for item in operations),
        only_weights=only_weights(manifest),
        kept=manifest.quantization.kept if manifest.quantization else (),
        needs=inspection.requirements,
        layer_errors=comparison.layer_errors,
        parity=comparison.parity,
        texts=comparison.texts,
        problems=(*find_problems(inspection, manifest), *comparison.problems),
    )


def _compare(
    recipe: ExportRecipe,
    manifest: Manifest,
    path: Path,
    inspection: Inspection,
    checkpoint: Checkpoint,
) -> _Comparison:
    run = recipe.load_runner(path)
    lengths = tuple(round(seconds * FRAMES_PER_SECOND) for seconds in manifest.lengths)
    model = load_edge_model(checkpoint, lengths)
    problems = []
    errors: dict[str, float] = {}
    if manifest.precision is Precision.INT8:
        clips = itertools.islice(
            parity.sample_mels(model.config, lengths), quantization_error.CLIPS
        )
        errors, unmatched = _layer_errors(recipe, manifest, inspection, model, clips)
        if unmatched:
            problems.append(
                f"{len(unmatched)} weights are not the checkpoint's: {', '.join(unmatched)}."
            )
    graph = DeviceGraph(model, manifest.split)
    figures = parity.measure(graph, run, lengths)
    try:
        parity.check(figures, parity.BOUNDS[manifest.precision])
    except CheckFailed as error:
        problems.append(error.cause)
    texts = translation_parity.compare(run, graph, checkpoint, lengths)
    return _Comparison(errors, figures, texts, tuple(problems))


def _layer_errors(
    recipe: ExportRecipe,
    manifest: Manifest,
    inspection: Inspection,
    model: EdgeModel,
    clips: Iterable[Float32Array],
) -> tuple[dict[str, float], list[str]]:
    """Error that the artifact's own weights cause in each layer, and weights without a layer."""
    quantization = manifest.quantization
    activations = quantization.activations if quantization else Activations.DYNAMIC
    graph = recipe.graph(model, Settings(Precision.INT8, manifest.split, activations))
    weights, unmatched = quantization_error.match_weights(graph, inspection.weights())
    errors = quantization_error.layer_errors(
        graph,
        clips,
        activations,
        lambda name, weight: weights.get(name, weight),
        token_ranges=recipe.token_ranges,
    )
    return {name: error for name, error in errors.items() if name in weights}, unmatched


def _speech(front_end: FrontEnd) -> Float32Array:
    """Log-mel (mel bins, frames) of the bundled clips, joined and repeated to the longest input."""
    index = json.loads((bundled.SAMPLES / "index.json").read_text("utf-8"))
    audio = np.concatenate([parity.read_audio(row["file"]) for row in index])
    return log_mel(np.resize(audio, front_end.max_frames * HOP), front_end.mel_bins)


def find_checkpoint(manifest: Manifest, name: str | None) -> Checkpoint | None:
    """Open the named checkpoint, or the bundled one if the artifact was made from it."""
    if name is not None:
        return open_source(name)
    if not (bundled.CHECKPOINT / "config.json").is_file():
        return None
    nano = open_checkpoint(bundled.CHECKPOINT)
    return nano if nano.fingerprint == manifest.fingerprint else None
