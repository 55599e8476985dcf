"""Core ML's side of the model: the graph that is converted, and its conversion."""

import functools
import re
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.optimize import coreml as optimize
from torch import Tensor, nn

from esrt.arrays import Float32Array
from esrt.config import ModelConfig
from esrt.errors import ArtifactError
from esrt.manifest import Precision
from esrt.model import EdgeModel, additive
from esrt.wire import Split
from export.progress import report_progress
from export.quantization_error import linear_layers
from export.recipe import Settings
from export.tracing import INPUT, OUTPUT, DeviceGraph

# Added to the scores of what must not be read. esrt.model's -1e9 is infinite in fp16.
_MASKED = -1e4
# Of coremltools' EnumeratedShapes.
_MOST_LENGTHS = 128
# The least and the greatest input of linear layers, by the layer's name; zero lies between.
Ranges = dict[str, tuple[float, float]]


class CoreMLGraph(nn.Module):
    """One utterance, log-mel (1, 128, frames) to features (1, tokens, width), up to the split.

    transformers' modules, whose layer norms, linear layers and GELUs are operations of Core ML.
    The Q-Former's queries and window are tables: the arithmetic that makes them is not exact in
    fp16.

    Args:
        model: whose weights to use.
        split: where the graph ends.
    """

    queries: Tensor
    mask: Tensor | None

    def __init__(self, model: EdgeModel, split: Split) -> None:
        super().__init__()
        self.model = DeviceGraph(model, split).model
        self.split = split
        longest = model.config.max_frames // 2
        window = model.q_former.window(longest)
        with torch.no_grad():
            queries = model.q_former.qformer.layernorm(model.q_former.queries(longest))
        mask = None if window is None else additive(window)[None, None].clamp(min=_MASKED)
        self.register_buffer("queries", queries)
        self.register_buffer("mask", mask)
        self.eval()

    def forward(self, mel: Tensor) -> Tensor:
        """Run encoder and Q-Former, and the projector for the ``adapter`` split."""
        queries, mask = self.queries, self.mask
        if mask is not None:
            frames = mel.shape[2]
            tokens = frames // self.model.config.frame_multiple
            queries, mask = queries[:, :tokens], mask[:, :, :tokens, : frames // 2]
        features: Tensor = self.model.q_former.qformer.encoder(
            queries,
            attention_mask=None,
            encoder_hidden_states=self.model.encoder(mel),
            encoder_attention_mask=mask,
            query_length=queries.shape[1],
        ).last_hidden_state
        return features if self.split == "qformer" else self.model.mlp(features)


def convert(graph: CoreMLGraph, settings: Settings, ranges: Ranges, kept: Collection[str]) -> Any:
    """A graph as a Core ML model (`coremltools.models.MLModel`), not yet saved.

    Args:
        graph: what to convert.
        settings: precision and lengths; several lengths are enumerated, none is a range.
        ranges: linear layers whose inputs become int8, and how far they reach.
        kept: linear layers that stay in fp16 when the precision is int8.

    Raises:
        ArtifactError: there are more lengths than Core ML takes.
    """
    half = settings.precision is not Precision.FP32
    pipeline = ct.PassPipeline.DEFAULT
    # Sizes are int32 throughout, as they are without activations in int8.
    pipeline.remove_passes({"common::add_int16_cast"})
    with warnings.catch_warnings():
        # Of what the tracer takes for constant; the parity check runs other lengths.
        warnings.simplefilter("ignore")
        report_progress("tracing")
        traced = _traced(graph, {name: ends for name, ends in ranges.items() if name not in kept})
        report_progress("converting")
        model = ct.convert(
            traced,
            inputs=[ct.TensorType(INPUT, _shape(graph.model.config, settings.lengths), np.float32)],
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
    weights = {weight_name(name): int8 for name in linear_layers(graph) if name not in kept}
    # By name and not by type: equal constants are merged, and then a bias of zeros may belong to
    # layers of several types.
    return optimize.linear_quantize_weights(
        model, optimize.OptimizationConfig(op_name_configs=weights)
    )


def weight_name(layer: str) -> str:
    """What a linear layer's weight is called in an fp16 program."""
    return f"{re.sub('[^0-9A-Za-z_]', '_', layer)}_weight_to_fp16"


@torch.no_grad()
def input_ranges(graph: CoreMLGraph, mels: Iterable[Float32Array]) -> Ranges:
    """How far the inputs of the linear layers reach on speech, (128, frames) each.

    Without the layers that read nothing of the speech: a fixed number of queries, and what the
    first layer makes of them before it reads the encoder's states, is computed by the conversion.
    """
    first = "model.q_former.qformer.encoder.layer.0."
    constant = (f"{first}attention.", f"{first}crossattention.attention.query")
    ranges: Ranges = {}

    def widen(name: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
        low, high = ranges.get(name, (0.0, 0.0))
        ranges[name] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

    with _hooked(
        layer.register_forward_pre_hook(functools.partial(widen, name))
        for name, layer in linear_layers(graph).items()
        if not (graph.model.config.padded and name.startswith(constant))
    ):
        for mel in mels:
            graph(torch.from_numpy(mel[None]))
    return ranges


def _shape(config: ModelConfig, lengths: tuple[int, ...]) -> Any:
    bins = config.encoder.mel_bins
    if len(lengths) == 1:
        return (1, bins, lengths[0])
    if len(lengths) > _MOST_LENGTHS:
        raise ArtifactError(
            f"Core ML takes at most {_MOST_LENGTHS} lengths, not {len(lengths)}.",
            "Leave --seconds off for every length, or name fewer.",
        )
    if lengths:
        shapes = [(1, bins, frames) for frames in lengths]
        return ct.EnumeratedShapes(shapes, default=shapes[-1])
    frames = ct.RangeDim(config.frame_multiple, config.max_frames, default=config.max_frames)
    return ct.Shape((1, bins, frames))


@torch.no_grad()
def _traced(graph: CoreMLGraph, ranges: Ranges) -> torch.jit.ScriptModule:
    """TorchScript, because coremltools does not take this torch's exported programs."""

    def quantize(name: str, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        low, high = ranges[name]
        scale = max(high - low, 1e-6) / 255
        zero = round(-128 - low / scale)
        values = torch.quantize_per_tensor(inputs[0], scale, zero, torch.qint8)
        return (values.dequantize(),)

    config = graph.model.config
    example = torch.zeros(1, config.encoder.mel_bins, config.max_frames)
    layers = linear_layers(graph)
    with _hooked(
        layers[name].register_forward_pre_hook(functools.partial(quantize, name)) for name in ranges
    ):
        traced: torch.jit.ScriptModule = torch.jit.trace(  # type: ignore[no-untyped-call]
            graph, example, check_trace=False
        )
    return traced


@contextmanager
def _hooked(handles: Iterable[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    attached = list(handles)
    try:
        yield
    finally:
        for handle in attached:
            handle.remove()
