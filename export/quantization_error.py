"""Error that int8 causes in the output of each linear layer, measured in torch on speech."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from esrt.arrays import Float32Array
from esrt.config import ModelConfig
from esrt.manifest import Activations
from export import parity

# Quantizes and dequantizes a layer's weights, given its name.
WeightQuantizer = Callable[[str, Tensor], Tensor]
# A typical int8 layer's output differs from fp32's by 1 % (RMS); outliers, which widen the range of
# all other values, cause several times that.
MAX_RELATIVE_ERROR = 0.05
# Number of layers in a report.
_REPORTED = 3
# Number of clips on which layers are measured.
CLIPS = 3
_MAX_CODE = 255
_MAX_SIGNED_CODE = 127
# Smallest cosine similarity between a layer's weights and their int8 form. For normally distributed
# weights the similarity is 0.9999.
_MIN_COSINE = 0.98


@dataclass(frozen=True)
class QuantizationPlan:
    """Plan of a graph's int8 quantization; empty at other precisions.

    Attributes:
        mels: log-mels of the bundled clips, (mel bins, frames) each.
        errors: error of each linear layer; see `esrt.manifest.Quantization`.
        kept: names of the layers that stay in floating point.
    """

    mels: list[Float32Array] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    kept: tuple[str, ...] = ()


def select_fp_layers(
    graph: nn.Module,
    config: ModelConfig,
    activations: Activations,
    lengths: Sequence[int],
    *,
    token_ranges: bool,
) -> QuantizationPlan:
    """Measure a graph's linear layers on speech, and select those to keep in floating point."""
    mels = list(parity.sample_mels(config, lengths))
    errors = layer_errors(graph, mels[:CLIPS], activations, token_ranges=token_ranges)
    return QuantizationPlan(mels, errors, sensitive_layers(errors))


def per_channel(_: str, weight: Tensor) -> Tensor:
    """Round weights (outputs, inputs) to symmetric int8 with a scale per output."""
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / _MAX_SIGNED_CODE
    return (weight / scale).round().clamp(-_MAX_SIGNED_CODE, _MAX_SIGNED_CODE) * scale


def linear_layers(graph: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers of a graph by name."""
    return {name: module for name, module in graph.named_modules() if isinstance(module, nn.Linear)}


def report_rows(errors: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield label and text of each line of a report on the layers with the largest errors."""
    worst = sorted(errors.items(), key=lambda item: -item[1])[:_REPORTED]
    if worst:
        yield "int8 error", "change of a linear layer's output (RMS); largest in these layers:"
    for name, error in worst:
        yield "", f"{error:.2%}  {name}"


def sensitive_layers(errors: Mapping[str, float]) -> tuple[str, ...]:
    """Layers whose error exceeds the maximum, so that they stay in floating point."""
    return tuple(name for name, error in errors.items() if error > MAX_RELATIVE_ERROR)


@torch.inference_mode()
def layer_errors(
    graph: nn.Module,
    mels: Iterable[Float32Array],
    activations: Activations,
    quantize_weight: WeightQuantizer = per_channel,
    *,
    token_ranges: bool = True,
) -> dict[str, float]:
    """Measure the error that int8 causes in each linear layer's output.

    Every layer gets its floating-point input, so errors do not accumulate along the graph.

    Args:
        graph: log-mel (1, mel bins, frames) to features.
        mels: log-mels of speech, (mel bins, frames) each; they also set the ranges of ``static``.
        activations: quantization of the layers' inputs.
        quantize_weight: quantization of the weights.
        token_ranges: ``dynamic`` has a range for each token; otherwise for each input.

    Returns:
        RMS of the error, relative to the RMS of the output, by layer.
    """
    clips = [torch.from_numpy(mel[None]) for mel in mels]
    layers = linear_layers(graph)
    ranges = _ranges(graph, layers, clips) if activations is Activations.STATIC else {}
    totals = {name: [0.0, 0.0] for name in layers}

    def measure(name: str) -> Callable[[nn.Linear, tuple[Tensor], Tensor], None]:
        def hook(layer: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> None:
            weight = quantize_weight(name, layer.weight)  # here, to hold one layer's at a time
            (states,) = inputs
            if activations is Activations.DYNAMIC:
                axes = (-1,) if token_ranges else tuple(range(states.dim()))
                low, high = states.amin(axes, keepdim=True), states.amax(axes, keepdim=True)
                states = _round_to_int8(states, low, high)
            elif activations is Activations.STATIC:
                states = _round_to_int8(states, *ranges[name])
            difference = nn.functional.linear(states, weight, layer.bias) - output
            totals[name][0] += float(difference.square().sum())
            totals[name][1] += float(output.square().sum())

        return hook

    _run(graph, clips, {name: (layer, measure(name)) for name, layer in layers.items()})
    return {
        name: round((error / power) ** 0.5, 6) for name, (error, power) in totals.items() if power
    }


def _ranges(
    graph: nn.Module, layers: Mapping[str, nn.Linear], clips: list[Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Smallest and largest input of each layer."""
    ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def observe(name: str) -> Callable[[nn.Linear, tuple[Tensor], Tensor], None]:
        def hook(_: nn.Linear, inputs: tuple[Tensor], __: Tensor) -> None:
            low, high = inputs[0].amin(), inputs[0].amax()
            if name in ranges:
                low = torch.minimum(low, ranges[name][0])
                high = torch.maximum(high, ranges[name][1])
            ranges[name] = low, high

        return hook

    _run(graph, clips, {name: (layer, observe(name)) for name, layer in layers.items()})
    return ranges


def _run(
    graph: nn.Module,
    clips: list[Tensor],
    hooks: Mapping[str, tuple[nn.Linear, Callable[..., None]]],
) -> None:
    handles = [layer.register_forward_hook(hook) for layer, hook in hooks.values()]
    try:
        for clip in clips:
            graph(clip)
    finally:
        for handle in handles:
            handle.remove()


def _round_to_int8(states: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Round to asymmetric int8 over a range, which is extended to include zero."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / _MAX_CODE).clamp(min=1e-12)
    zero = (-low / scale).round()
    return ((states / scale + zero).round().clamp(0, _MAX_CODE) - zero) * scale


def match_weights(
    graph: nn.Module, weights: Iterator[tuple[str, Float32Array]]
) -> tuple[dict[str, Tensor], list[str]]:
    """Match an artifact's weights with the layers of a graph.

    Artifacts do not keep names. The layer of a weight matrix has the same shape and the highest
    cosine similarity, which must be near 1.

    Returns:
        The weights by layer, and the artifact's names of weights that match no layer.
    """
    matches: dict[str, Tensor] = {}
    unmatched = []
    layers = {name: layer.weight.detach() for name, layer in linear_layers(graph).items()}
    for stored_name, array in weights:
        weight = torch.from_numpy(np.ascontiguousarray(array))
        best = max(
            (name for name in layers if layers[name].shape == weight.shape),
            key=lambda name: _cosine(layers[name][0], weight[0]),
            default=None,
        )
        if best is None or _cosine(layers[best], weight) < _MIN_COSINE:
            unmatched.append(stored_name)
            continue
        matches[best] = weight
    return matches, unmatched


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-30))
