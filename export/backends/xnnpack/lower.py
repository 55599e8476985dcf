"""Lowering to ExecuTorch: trace, quantize, delegate to XNNPACK, check what was delegated."""

import dataclasses
import itertools
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import QuantizationConfig
from executorch.exir import to_edge_transform_and_lower
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.passes.infra.partitioner import Partition
from torch.fx.passes.utils.fuser_utils import validate_partition
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from esrt.arrays import Float32Array
from esrt.config import ModelConfig
from esrt.errors import CheckFailed
from esrt.manifest import Activations, Precision
from export.backends.xnnpack import delegation_report, fp16_convert_ops
from export.backends.xnnpack.runner import longest_input
from export.progress import report_progress
from export.quantization_error import QuantizationPlan
from export.recipe import Notes, Settings
from export.tracing import trace

# The quantizer's smallest scale, 2**-12, is coarse for weights below 0.03, as wide layers have.
_SMALLEST_SCALE = 1e-9


def lower(
    graph: nn.Module, config: ModelConfig, settings: Settings, plan: QuantizationPlan, path: Path
) -> Notes:
    """Write a graph as an ExecuTorch program; see `export.recipe.ExportRecipe`.

    Raises:
        CheckFailed: a matrix product would run on a portable kernel, a linear layer that should be
            int8 is not, or the program does not take the longest input.
    """
    report_progress("tracing")
    program = trace(graph, config)
    if settings.precision is Precision.INT8:
        report_progress("quantizing")
        int8 = quantize(program, plan.mels, settings.activations, plan.kept)
        program = trace(int8, config)
    report_progress("lowering to XNNPACK")
    delegated = to_edge_transform_and_lower(program, partitioner=[Partitioner()])
    summary = delegation_report.summarize(delegated.exported_program())
    delegation_report.check(summary, settings.precision, len(plan.kept))
    report_progress("writing")
    path.write_bytes(delegated.to_executorch().buffer)
    check_longest_input(path, config.max_frames)
    return (("delegation", str(summary)),)


def check_longest_input(path: Path, max_frames: int) -> None:
    """Fail an export whose program takes only shorter inputs than the model.

    Raises:
        CheckFailed: with both lengths.
    """
    longest = longest_input(path)
    if longest != max_frames:
        raise CheckFailed(
            f"The program takes at most {longest} frames, the model {max_frames}.",
            "Nothing was written; see the example input in export/tracing.py.",
        )


def quantize(
    program: ExportedProgram,
    mels: Iterable[Float32Array],
    activations: Activations = Activations.DYNAMIC,
    kept: Collection[str] = (),
) -> nn.Module:
    """Quantize the linear layers to int8; the rest stays in fp32.

    Args:
        program: the float graph, as traced.
        mels: log-mels of speech, (mel bins, frames) each. ``static`` takes its ranges from all of
            them. ``dynamic`` needs one run, which sets the scales of the weights.
        activations: ranges of each row (``dynamic``) or fixed ranges (``static``).
        kept: names of the linear layers that stay in floating point.
    """
    dynamic = activations is Activations.DYNAMIC
    quantizer = XNNPACKQuantizer()
    quantizer.set_module_type(nn.Linear, _configuration(dynamic))
    quantizer.set_filter_function(lambda node: _module(node) not in kept)
    # The guards exclude the longest input, whose slices of tables take the whole table.
    prepared = prepare_pt2e(program.module(check_guards=False), quantizer)
    with torch.no_grad():
        for mel in itertools.islice(mels, 1) if dynamic else mels:
            prepared(torch.from_numpy(mel[None]))
    converted: nn.Module = convert_pt2e(prepared)
    return converted


def _configuration(dynamic: bool) -> QuantizationConfig:
    """Symmetric weights per channel and asymmetric activations, without a coarse smallest scale."""
    default = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    weight = dataclasses.replace(
        default.weight,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=_SMALLEST_SCALE),
    )
    if dynamic:
        return dataclasses.replace(default, weight=weight)
    activation = dataclasses.replace(
        default.input_activation,
        observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=_SMALLEST_SCALE),
    )
    return dataclasses.replace(
        default, weight=weight, input_activation=activation, output_activation=activation
    )


def _module(node: Node) -> str:
    """Name of the module that a node was traced from."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name: str = stack[-1][0] if stack else ""
    return name.removeprefix("L['self'].")


class Partitioner(XnnpackPartitioner):  # type: ignore[misc]
    """XNNPACK's partitioner, which also joins subgraphs and takes `fp16_convert_ops`.

    The base class begins a new subgraph after each group of int8 linear layers that share an
    input, and tensors are copied between subgraphs. Here all become one subgraph if no operator
    outside of XNNPACK lies between them.
    """

    def __init__(self) -> None:
        super().__init__([*ALL_PARTITIONER_CONFIGS, *fp16_convert_ops.CONFIGS])

    def generate_partitions(self, ep: ExportedProgram) -> list[Partition]:
        """Return the union of the base class's subgraphs if it is valid, or else each of them."""
        partitions: list[Partition] = super().generate_partitions(ep)
        nodes = [node for partition in partitions for node in partition.nodes]
        return [Partition(id=0, nodes=nodes)] if validate_partition(nodes) else partitions
