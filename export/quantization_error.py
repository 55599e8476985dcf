"""What int8 does to each linear layer: the error of its output on real speech, in torch."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from esrt.arrays import Float32Array
from esrt.config import ModelConfig
from esrt.manifest import Activations, Precision
from export import parity
from export.progress import report_progress
from export.recipe import Settings

# A layer's name and weights to the weights that int8 makes of them.
Quantized = Callable[[str, Tensor], Tensor]
# Of bundled models, int8 takes a layer 1 % from itself; a layer with outliers that spoil the range
# of all else is told by several times that.
MAX_RELATIVE_ERROR = 0.05
# Clips on which layers are measured.
CLIPS = 3
_LEVELS = 255
_LARGEST = 127


@dataclass(frozen=True)
class QuantizationPlan:
    """What int8 does to a graph; all empty at other precisions.

    ``mels`` are the bundled clips, (128, frames) each; ``errors`` and ``kept`` as in
    `esrt.manifest.Quantization`.
    """

    mels: list[Float32Array] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    kept: tuple[str, ...] = ()


def select_fp_layers(graph: nn.Module, config: ModelConfig, settings: Settings) -> QuantizationPlan:
    """Measure a graph's layers on speech, and choose those to keep in floating point."""
    if settings.precision is not Precision.INT8:
        return QuantizationPlan()
    report_progress("measuring what int8 costs each layer")
    mels = list(parity.sample_mels(config, settings.lengths))
    found = errors(graph, mels[:CLIPS], settings.activations)
    return QuantizationPlan(mels, found, sensitive_layers(found))


def per_channel(_: str, weight: Tensor) -> Tensor:
    """Weights (outputs, inputs) as symmetric int8 per output leaves them."""
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / _LARGEST
    return (weight / scale).round().clamp(-_LARGEST, _LARGEST) * scale


def linear_layers(graph: nn.Module) -> dict[str, nn.Linear]:
    """A graph's linear layers by name."""
    return {name: module for name, module in graph.named_modules() if isinstance(module, nn.Linear)}


def sensitive_layers(found: Mapping[str, float]) -> tuple[str, ...]:
    """The layers whose errors are so large that they had better stay in floating point."""
    return tuple(name for name, error in found.items() if error > MAX_RELATIVE_ERROR)


@torch.inference_mode()
def errors(
    graph: nn.Module,
    mels: Iterable[Float32Array],
    activations: Activations,
    quantized: Quantized = per_channel,
) -> dict[str, float]:
    """How far int8 takes each linear layer's output from itself.

    Every layer is fed what it gets in floating point, so errors do not add up along the graph.

    Args:
        graph: log-mel (1, 128, frames) to features.
        mels: speech, (128, frames) each; the ranges of ``static`` come from it too.
        activations: what the layers make of their inputs.
        quantized: the int8 weights.

    Returns:
        By layer, the root mean square of the error over that of the output.
    """
    clips = [torch.from_numpy(mel[None]) for mel in mels]
    layers = linear_layers(graph)
    ranges = _ranges(graph, layers, clips) if activations is Activations.STATIC else {}
    totals = {name: [0.0, 0.0] for name in layers}

    def measure(name: str) -> Callable[[nn.Linear, tuple[Tensor], Tensor], None]:
        def hook(layer: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> None:
            weight = quantized(name, layer.weight)  # here, so that one layer's is held at a time
            (states,) = inputs
            if activations is Activations.DYNAMIC:
                low, high = states.amin(-1, keepdim=True), states.amax(-1, keepdim=True)
                states = _rounded(states, low, high)
            elif activations is Activations.STATIC:
                states = _rounded(states, *ranges[name])
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
    """The least and the greatest input of each layer."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def observe(name: str) -> Callable[[nn.Linear, tuple[Tensor], Tensor], None]:
        def hook(_: nn.Linear, inputs: tuple[Tensor], __: Tensor) -> None:
            low, high = inputs[0].amin(), inputs[0].amax()
            if name in found:
                low, high = torch.minimum(low, found[name][0]), torch.maximum(high, found[name][1])
            found[name] = low, high

        return hook

    _run(graph, clips, {name: (layer, observe(name)) for name, layer in layers.items()})
    return found


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


def _rounded(states: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """As asymmetric int8 over a range that holds zero leaves them."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / _LEVELS).clamp(min=1e-12)
    zero = (-low / scale).round()
    return ((states / scale + zero).round().clamp(0, _LEVELS) - zero) * scale


def matched(
    graph: nn.Module, weights: Iterator[tuple[str, Float32Array]]
) -> tuple[dict[str, Tensor], list[str]]:
    """Which layers of a graph the weights of an artifact are.

    Artifacts do not keep names, so a layer is the one of the same shape whose weights point in
    the same direction.

    Returns:
        The weights by layer, and the artifact's names of those that are no layer's.
    """
    found: dict[str, Tensor] = {}
    foreign = []
    layers = {name: layer.weight.detach() for name, layer in linear_layers(graph).items()}
    for where, array in weights:
        weight = torch.from_numpy(np.ascontiguousarray(array))
        best = max(
            (name for name in layers if layers[name].shape == weight.shape),
            key=lambda name: _cosine(layers[name][0], weight[0]),
            default=None,
        )
        if best is None or _cosine(layers[best], weight) < _SAME:
            foreign.append(where)
            continue
        found[best] = weight
    return found, foreign


# Int8 per channel leaves a cosine of 0.9999 of normally distributed weights.
_SAME = 0.98


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-30))
