"""Exports the device's part of a checkpoint to ONNX: ``python export/to_onnx.py``.

Load, trace, optionally quantize, compare with torch on real speech, describe. Nothing is written
unless the comparison holds.
"""

import logging
import sys
import time
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import onnxruntime
import torch
import typer
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.console import Console

if __package__ is None:  # run as a file: the repository, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.errors import CheckFailed, EsrtError
from esrt.manifest import Manifest, SplitPoint
from export import parity
from export.artifact import artifact_folder, describe
from export.graph import INPUT, OUTPUT, DeviceGraph, dynamic_frames, example_input

ENTRY = "model.onnx"
TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")


class Precision(StrEnum):
    """What the weights of linear layers, and their products, are computed in."""

    FP32 = "fp32"
    INT8 = "int8"


class Split(StrEnum):
    """Where the cloud takes over."""

    QFORMER = "qformer"
    ADAPTER = "adapter"


def export_onnx(
    checkpoint: Checkpoint, out: Path, precision: Precision, split: SplitPoint
) -> Manifest:
    """Write an ONNX artifact.

    Args:
        checkpoint: what to export.
        out: the artifact's folder; an existing one is replaced.
        precision: ``int8`` quantizes the linear layers: weights per channel, activations
            dynamically.
        split: the graph's end, after the Q-Former or after the projector.

    Raises:
        CheckFailed: the graph's features differ from torch's beyond the bounds, or an int8 graph
            has no integer products.
        CheckpointError: the checkpoint's weights do not fit.
    """
    graph = DeviceGraph(checkpoint.edge_model(), split)
    with artifact_folder(out) as folder:
        path = folder / ENTRY
        _trace(graph, path)
        if precision is Precision.INT8:
            _quantize(path)
        figures = parity.measure(graph, _runner(path))
        parity.check(figures, parity.BOUNDS[precision.value])
        manifest = describe(
            checkpoint,
            folder,
            ENTRY,
            kind="onnx",
            precision=precision.value,
            split=split,
            parity=figures,
            tools=TOOLS,
        )
        manifest.write(folder)
    return manifest


def _trace(graph: DeviceGraph, path: Path) -> None:
    config = graph.model.config
    frames = dynamic_frames(config)
    program = torch.export.export(
        graph,
        (example_input(config),),
        dynamic_shapes=None if frames is None else {INPUT: frames},
        strict=False,
    )
    exported = torch.onnx.export(
        program,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    if exported is None:
        raise CheckFailed("The ONNX exporter returned nothing.", "See its messages above.")
    exported.save(str(path))


def _quantize(path: Path) -> None:
    """Linear layers to int8, per channel; the convolutions stay in fp32."""
    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(
        prepared,
        path,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()
    operators = {node.op_type for node in onnx.load(path).graph.node}
    if "MatMulInteger" not in operators:
        raise CheckFailed(
            "The int8 graph multiplies in floating point.",
            "Nothing was written; check the onnxruntime version against the lock.",
        )


def _runner(path: Path) -> parity.Runner:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(mel: parity.Array) -> parity.Array:
        return np.asarray(session.run([OUTPUT], {INPUT: mel})[0])

    return run


def main(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder.")] = Path("models/esrt-nano"),
    precision: Annotated[Precision, typer.Option()] = Precision.INT8,
    split: Annotated[Split, typer.Option(help="Where the cloud takes over.")] = Split.QFORMER,
    out: Annotated[
        Path | None,
        typer.Option(help="Artifact folder; default build/artifacts/MODEL-onnx-PRECISION."),
    ] = None,
) -> None:
    """Export encoder and Q-Former (and projector, with --split adapter) to ONNX."""
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    try:
        opened = open_checkpoint(checkpoint)
        name = f"{opened.config.name}-onnx-{precision.value}"
        if split is Split.ADAPTER:
            name += "-adapter"
        target = out or Path("build/artifacts") / name
        with console.status(f"exporting {opened.config.name} to ONNX, {precision.value}"):
            manifest = export_onnx(opened, target, precision, split.value)
    except EsrtError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    size = sum((target / name).stat().st_size for name in manifest.files)
    console.print(f"[bold]{target}[/bold]")
    console.print(f"  model        {manifest.model}, fingerprint {manifest.fingerprint}")
    console.print(f"  precision    {manifest.precision}, split after the {manifest.split}")
    console.print(f"  size         {size / 1e6:.1f} MB")
    parity_text = ", ".join(f"{name} {value:g}" for name, value in manifest.parity.items())
    console.print(f"  parity       {parity_text}")
    console.print(f"  took         {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    # The exporters narrate through these; the report says what matters.
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    typer.run(main)
