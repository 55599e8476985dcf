"""Lowering to Core ML: trace, convert and quantize by coremltools, save, read back, check."""

import functools
import re
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.optimize import coreml as optimize
from torch import Tensor, nn

from esrt.arrays import Float32Array
from esrt.config import ModelConfig
from esrt.errors import ArtifactError, CheckFailed
from esrt.manifest import Activations, Precision
from export.backends.coreml.mil_interpreter import Program
from export.graph_io import INPUT, OUTPUT
from export.progress import report_progress
from export.quantization_error import QuantizationPlan, linear_layers
from export.recipe import Notes, Settings

# Limit of coremltools' EnumeratedShapes.
_MAX_LENGTHS = 128
# Smallest and largest input of linear layers, by the layer's name; zero lies between them.
Ranges = dict[str, tuple[float, float]]


def lower(
    graph: nn.Module, config: ModelConfig, settings: Settings, plan: QuantizationPlan, path: Path
) -> Notes:
    """Write a graph as an .mlpackage; see `export.recipe.ExportRecipe`.

    Raises:
        ArtifactError: Core ML does not take that many lengths.
        CheckFailed: the interpreter does not know an operation of the program, or a linear layer
            that should be int8 is in floating point.
    """
    static = settings.precision is Precision.INT8 and settings.activations is Activations.STATIC
    ranges = input_ranges(graph, config, plan.mels) if static else {}
    convert(graph, config, settings, ranges, plan.kept).save(str(path))
    for part in path.rglob("*"):  # coremltools lets only the owner read some files
        part.chmod(0o755 if part.is_dir() else 0o644)
    report_progress("reading the program back")
    program = Program(path)
    check(program, settings, plan.kept)
    linear = len(program.of_type("linear"))
    return (
        ("program", f"{len(program.steps)} operations, {linear} of them linear layers"),
        ("needs", program.requirements),
    )


def convert(
    graph: nn.Module,
    config: ModelConfig,
    settings: Settings,
    ranges: Ranges,
    kept: Collection[str],
) -> Any:
    """Convert a graph to a Core ML model (`coremltools.models.MLModel`), not yet saved.

    Args:
        graph: the module to convert.
        config: configuration of the model.
        settings: precision and lengths. Several lengths are enumerated; none is a range.
        ranges: linear layers whose inputs become int8, with the ranges of these inputs.
        kept: linear layers that stay in fp16 when the precision is int8.

    Raises:
        ArtifactError: there are more lengths than Core ML takes.
    """
    half = settings.precision is not Precision.FP32
    pipeline = ct.PassPipeline.DEFAULT
    # Sizes stay int32 with int8 activations, as they do without.
    pipeline.remove_passes({"common::add_int16_cast"})
    with warnings.catch_warnings():
        # The tracer warns of values that it takes for constants; the parity check runs other
        # lengths than the traced one.
        warnings.simplefilter("ignore")
        report_progress("tracing")
        int8_inputs = {name: ends for name, ends in ranges.items() if name not in kept}
        traced = _traced(graph, config, int8_inputs)
        report_progress("converting")
        model = ct.convert(
            traced,
            inputs=[ct.TensorType(INPUT, _shape(config, settings.lengths), np.float32)],
            outputs=[ct.TensorType(OUTPUT, dtype=np.float32)],
            # int8 weights need iOS 16, int8 activations iOS 17.
            minimum_deployment_target=ct.target.iOS17 if ranges else ct.target.iOS16,
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            pass_pipeline=pipeline,
            skip_model_load=True,
        )
    if settings.precision is not Precision.INT8:
        return model
    report_progress("quantizing")
    int8 = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
    # Selected by name and not by type: equal constants are merged, so a bias of zeros may belong
    # to layers of several types.
    weights = {weight_name(name): int8 for name in linear_layers(graph) if name not in kept}
    return optimize.linear_quantize_weights(
        model, optimize.OptimizationConfig(op_name_configs=weights)
    )


def weight_name(layer: str) -> str:
    """Name of a linear layer's weight in an fp16 program."""
    return f"{re.sub('[^0-9A-Za-z_]', '_', layer)}_weight_to_fp16"


@torch.no_grad()
def input_ranges(graph: nn.Module, config: ModelConfig, mels: Iterable[Float32Array]) -> Ranges:
    """Measure the ranges of the linear layers' inputs on speech, (mel bins, frames) each.

    Layers whose input does not depend on the speech are left out: a fixed number of queries, and
    the first layer's self-attention over them, are computed by the conversion.
    """
    first = "model.q_former.qformer.encoder.layer.0."
    constant = (f"{first}attention.", f"{first}crossattention.attention.query")
    ranges: Ranges = {}

    def widen(name: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
        low, high = ranges.get(name, (0.0, 0.0))
        ranges[name] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

    with _hooks(
        layer.register_forward_pre_hook(functools.partial(widen, name))
        for name, layer in linear_layers(graph).items()
        if not (config.padded and name.startswith(constant))
    ):
        for mel in mels:
            graph(torch.from_numpy(mel[None]))
    return ranges


def check(program: Program, settings: Settings, kept: Collection[str]) -> None:
    """Fail an int8 export with other linear layers in floating point than those kept.

    Raises:
        CheckFailed: with the names of the weights and inputs that are in floating point.
    """
    if settings.precision is not Precision.INT8:
        return
    allowed = {weight_name(name) for name in kept}
    producers = {step.output: step.type for step in program.steps}
    floating = []
    for linear in program.of_type("linear"):
        (weight,), (values,) = linear.inputs["weight"], linear.inputs["x"]
        if producers.get(weight) != "constexpr_affine_dequantize":
            floating += [weight] if weight not in allowed else []
        elif settings.activations is Activations.STATIC and producers.get(values) != "dequantize":
            floating.append(values)
    if floating:
        raise CheckFailed(
            f"The int8 program keeps in floating point: {', '.join(floating)}.",
            "Nothing was written; check the coremltools version against the lock.",
        )


def _shape(config: ModelConfig, lengths: tuple[int, ...]) -> Any:
    bins = config.encoder.mel_bins
    if len(lengths) == 1:
        return (1, bins, lengths[0])
    if len(lengths) > _MAX_LENGTHS:
        raise ArtifactError(
            f"Core ML takes at most {_MAX_LENGTHS} lengths, not {len(lengths)}.",
            "Leave --seconds off for every length, or name fewer.",
        )
    if lengths:
        shapes = [(1, bins, frames) for frames in lengths]
        return ct.EnumeratedShapes(shapes, default=shapes[-1])
    frames = ct.RangeDim(config.frame_multiple, config.max_frames, default=config.max_frames)
    return ct.Shape((1, bins, frames))


@torch.no_grad()
def _traced(graph: nn.Module, config: ModelConfig, ranges: Ranges) -> torch.jit.ScriptModule:
    """Trace to TorchScript, because coremltools does not take this torch's exported programs."""

    def quantize(name: str, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        low, high = ranges[name]
        scale = max(high - low, 1e-6) / 255
        zero = round(-128 - low / scale)
        values = torch.quantize_per_tensor(inputs[0], scale, zero, torch.qint8)
        return (values.dequantize(),)

    example = torch.zeros(1, config.encoder.mel_bins, config.max_frames)
    layers = linear_layers(graph)
    with _hooks(
        layers[name].register_forward_pre_hook(functools.partial(quantize, name)) for name in ranges
    ):
        traced: torch.jit.ScriptModule = torch.jit.trace(  # type: ignore[no-untyped-call]
            graph, example, check_trace=False
        )
    return traced


@contextmanager
def _hooks(handles: Iterable[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Remove the registered hooks at the end of the block."""
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()
