"""Examines an artifact: ``python -m export.doctor ARTIFACT``.

What it computes where, what int8 costs each layer, size and memory, what a device must have, and
whether its features and the texts made from them are still torch's. Ends with 1 when a linear layer
runs on a portable kernel, an int8 graph multiplies in floating point, or the features are not the
checkpoint's.
"""

import dataclasses
import itertools
import json
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from torch import nn

from esrt import bundled
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.cli import exit_on_error
from esrt.errors import ArtifactError, CheckFailed, EsrtError, printable
from esrt.features import FRAMES_PER_SECOND, HOP, log_mel
from esrt.manifest import Activations, Kind, Manifest, read_manifest
from esrt.model import EdgeModel
from esrt.wire import Split
from export import parity, peak_memory, quantization_error, translation_parity
from export.input_shapes import restrict_lengths
from export.inspection import Inspection, counted, problems, share
from export.tracing import DeviceGraph

_WORST = 5


@dataclass(frozen=True)
class ArtifactInspector:
    """How to examine one kind of artifact.

    ``inspect`` reads what it computes, given a log-mel (128, frames) of the longest input;
    ``runner`` runs it; ``graph`` has the layers whose weights it holds.
    """

    inspect: Callable[[Path, Manifest, Float32Array], Inspection]
    runner: Callable[[Path, Manifest], parity.Runner]
    graph: Callable[[EdgeModel, Split], nn.Module] = DeviceGraph


def _onnx() -> ArtifactInspector:
    from export import to_onnx
    from export.backends.onnx import inspect

    return ArtifactInspector(inspect.inspect, lambda path, _: to_onnx.runner(path))


def _executorch() -> ArtifactInspector:
    from export.backends.xnnpack import inspect, lower
    from export.backends.xnnpack.rewrite import XnnpackEncoder

    return ArtifactInspector(
        inspect.inspect,
        lambda path, manifest: lower.runner(path, longest(manifest)),
        XnnpackEncoder,
    )


def _coreml() -> ArtifactInspector:
    from export import to_coreml
    from export.backends.coreml import inspect, mil_interpreter

    return ArtifactInspector(
        inspect.inspect, lambda path, _: to_coreml.runner(mil_interpreter.Program(path))
    )


# Each with its own imports, so that one format's tools are enough to examine it.
INSPECTORS: dict[Kind, Callable[[], ArtifactInspector]] = {
    "onnx": _onnx,
    "executorch": _executorch,
    "coreml": _coreml,
}


@dataclass(frozen=True)
class Diagnosis:
    """What was found; ``problems`` say why the artifact should not be shipped.

    ``shares`` and ``outside`` come from the graph; ``parity``, ``layer_errors`` and ``texts`` need
    the checkpoint and are empty without it. Sizes are bytes.
    """

    artifact: str
    kind: str
    precision: str
    size: int
    peak_memory: int | None
    delegated: dict[str, float]
    integer: dict[str, float]
    not_delegated: str
    floating: str
    kept: tuple[str, ...]
    needs: tuple[str, ...]
    layer_errors: dict[str, float]
    parity: dict[str, float]
    texts: dict[str, Any]
    problems: tuple[str, ...]


def longest(manifest: Manifest) -> int:
    """The frames of the longest input that the manifest declares."""
    front_end = manifest.front_end
    multiple = front_end.frame_multiple
    return round(front_end.max_seconds * FRAMES_PER_SECOND) // multiple * multiple


def inspect_artifact(folder: Path, checkpoint: Checkpoint | None) -> Diagnosis:
    """Examine an artifact.

    Args:
        folder: the artifact's folder.
        checkpoint: what it was made from; without it, features, layers and texts are not compared.

    Raises:
        ArtifactError: missing or damaged, of a kind that cannot be examined here, or not made from
            this checkpoint.
    """
    manifest = read_manifest(folder)
    if manifest.kind not in INSPECTORS:
        raise ArtifactError(
            f"Artifacts of kind {manifest.kind} cannot be examined.", f"Use one of: {_kinds()}."
        )
    if checkpoint is not None and checkpoint.fingerprint != manifest.fingerprint:
        raise ArtifactError(
            f"{folder} has fingerprint {manifest.fingerprint}, the checkpoint"
            f" {checkpoint.fingerprint}.",
            "Name the checkpoint that it was exported from.",
        )
    kit, path, frames = INSPECTORS[manifest.kind](), folder / manifest.entry, longest(manifest)
    try:
        inspection = kit.inspect(path, manifest, _speech(frames))
    except EsrtError:
        raise
    except Exception as error:  # the formats' own errors share no base
        raise ArtifactError(f"{path} cannot be read: {error}.", "Export it again.") from error
    found = problems(inspection, manifest)
    operations = inspection.operations
    delegated = [operation for operation in operations if operation.delegated]
    integer = [operation for operation in operations if operation.integer]
    outside = [operation for operation in operations if not operation.delegated]
    floating = [operation for operation in operations if operation.macs and not operation.integer]
    errors: dict[str, float] = {}
    figures: dict[str, float] = {}
    spoken: dict[str, Any] = {}
    if checkpoint is not None:
        run = kit.runner(path, manifest)
        lengths = tuple(round(seconds * FRAMES_PER_SECOND) for seconds in manifest.lengths)
        model = checkpoint.edge_model()
        model.config = restrict_lengths(checkpoint.config, lengths)
        if manifest.precision == "int8":
            clips = itertools.islice(
                parity.sample_mels(model.config, lengths), quantization_error.CLIPS
            )
            own = kit.graph(model, manifest.split)
            errors, foreign = _layers(inspection, own, clips, manifest)
            if foreign:
                names = ", ".join(foreign)
                found.append(f"{len(foreign)} weights are not the checkpoint's: {names}.")
        graph = DeviceGraph(model, manifest.split)
        figures = parity.measure(graph, run, lengths)
        spoken = translation_parity.compare(run, graph, checkpoint, lengths)
        try:
            parity.check(figures, parity.BOUNDS[manifest.precision])
        except CheckFailed as error:
            found.append(error.cause)
    return Diagnosis(
        artifact=str(folder),
        kind=manifest.kind,
        precision=manifest.precision,
        size=sum((folder / name).stat().st_size for name in manifest.files),
        peak_memory=peak_memory.peak_bytes(manifest.kind, path, frames),
        delegated=dataclasses.asdict(share(delegated, operations)),
        integer=dataclasses.asdict(share(integer, operations)),
        not_delegated=counted(outside),
        floating=counted(floating),
        kept=manifest.quantization.kept if manifest.quantization else (),
        needs=inspection.needs,
        layer_errors=errors,
        parity=figures,
        texts=spoken,
        problems=tuple(found),
    )


def _kinds() -> str:
    return ", ".join(INSPECTORS)


def _speech(frames: int) -> Float32Array:
    """That much of the bundled clips, one after the other: (128, frames)."""
    index = json.loads((bundled.SAMPLES / "index.json").read_text("utf-8"))
    audio = np.concatenate([parity.read_audio(row["file"]) for row in index])
    return log_mel(np.resize(audio, frames * HOP))


def _layers(
    inspection: Inspection, graph: nn.Module, clips: Iterable[Float32Array], manifest: Manifest
) -> tuple[dict[str, float], list[str]]:
    """The error that the artifact's own int8 weights cause in each layer, and foreign weights."""
    weights, foreign = quantization_error.matched(graph, inspection.weights())
    activations = (
        manifest.quantization.activations if manifest.quantization else Activations.DYNAMIC
    )
    errors = quantization_error.errors(
        graph, clips, activations, lambda name, weight: weights.get(name, weight)
    )
    return {name: error for name, error in errors.items() if name in weights}, foreign


def report(console: Console, diagnosis: Diagnosis) -> None:
    """Print a diagnosis on one screen."""
    console.print(f"[bold]{diagnosis.artifact}[/bold]  {diagnosis.kind} {diagnosis.precision}")
    rows = [
        ("size", f"{diagnosis.size / 1e6:.1f} MB"),
        ("memory", _memory(diagnosis.peak_memory)),
        ("delegated", _percent(diagnosis.delegated)),
        ("integer", _percent(diagnosis.integer)),
    ]
    if diagnosis.not_delegated != "none":
        rows.append(
            ("outside", f"{diagnosis.not_delegated}: portable kernels, which are not optimized,")
        )
        rows.append(("", "and every border between them and the delegate copies tensors"))
    if diagnosis.precision == "int8":
        rows.append(("float", f"{diagnosis.floating}: products that int8 does not speed up"))
        rows.append(("kept", ", ".join(diagnosis.kept) or "no linear layer in floating point"))
    worst = sorted(diagnosis.layer_errors.items(), key=lambda item: -item[1])[:_WORST]
    for place, (name, error) in enumerate(worst):
        rows.append(("" if place else "layer error", f"{error:.2%} {name}"))
    if diagnosis.parity:
        rows.append(("parity", ", ".join(f"{k} {v:g}" for k, v in diagnosis.parity.items())))
    else:
        rows.append(("parity", "not measured: name the --checkpoint that it was exported from"))
    if diagnosis.texts:
        same = f"{diagnosis.texts['equal']} of {diagnosis.texts['compared']} equal torch's"
        rows.append(("texts", same))
    rows.extend(("needs" if not place else "", need) for place, need in enumerate(diagnosis.needs))
    rows.extend(("PROBLEM", problem) for problem in diagnosis.problems)
    for label, text in rows:
        console.print(f"  {label:<12} {printable(text)}", markup=False)


def _memory(size: int | None) -> str:
    if size is None:
        return "not told by this system"
    return f"{size / 1e6:.1f} MB: the peak of one run of the longest input, above the runtime's own"


def _percent(shares: dict[str, float]) -> str:
    return f"{shares['operators']:.1%} of operators, {shares['macs']:.1%} of multiply-adds"


def _checkpoint(folder: Path, named: str | None) -> Checkpoint | None:
    """The checkpoint named, or the bundled one if the artifact was made from it."""
    from export.checkpoint_source import open_source

    if named is not None:
        return open_source(named)
    if not (bundled.CHECKPOINT / "config.json").is_file():
        return None
    nano = open_checkpoint(bundled.CHECKPOINT)
    return nano if nano.fingerprint == read_manifest(folder).fingerprint else None


def main(
    artifact: Annotated[Path, typer.Argument(help="The artifact's folder.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(help="What it was exported from; found by itself if that is the bundled one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the diagnosis as JSON.")] = False,
) -> None:
    """Examine an exported artifact; ends with 1 when it should not be shipped."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with exit_on_error():
        diagnosis = inspect_artifact(artifact, _checkpoint(artifact, checkpoint))
    if as_json:
        print(json.dumps(dataclasses.asdict(diagnosis), indent=2, ensure_ascii=False))
    else:
        report(Console(highlight=False, soft_wrap=True), diagnosis)
    if diagnosis.problems:
        raise typer.Exit(CheckFailed.exit_code)


if __name__ == "__main__":
    typer.run(main)
