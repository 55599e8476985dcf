"""ExecuTorch's tools around XNNPACK: quantize, lower, run."""

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
from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.passes.infra.partitioner import Partition
from torch.fx.passes.utils.fuser_utils import validate_partition
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from esrt.arrays import Float32Array
from esrt.errors import CheckFailed
from esrt.manifest import Activations
from export import parity
from export.backends.xnnpack import fp16_convert_ops

# The quantizer's own least scale, 2**-12, is coarse for weights below 0.03, which wide layers have.
_LEAST_SCALE = 1e-9


def quantized(
    program: ExportedProgram,
    mels: Iterable[Float32Array],
    activations: Activations = Activations.DYNAMIC,
    kept: Collection[str] = (),
) -> nn.Module:
    """The graph with its linear layers in int8, the rest in fp32.

    Args:
        program: the float graph, as traced.
        mels: log-mels of speech, (128, frames) each. ``static`` takes its ranges from all of them;
            ``dynamic`` learns nothing from them, but the scales of the weights are only set where
            a run comes by, so it takes the first.
        activations: by the range of each row (``dynamic``), or by fixed ranges (``static``).
        kept: the linear layers, by name, to leave in floating point.
    """
    dynamic = activations is Activations.DYNAMIC
    quantizer = XNNPACKQuantizer()
    quantizer.set_module_type(nn.Linear, _configuration(dynamic))
    quantizer.set_filter_function(lambda node: _module(node) not in kept)
    prepared = prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        for mel in itertools.islice(mels, 1) if dynamic else mels:
            prepared(torch.from_numpy(mel[None]))
    converted: nn.Module = convert_pt2e(prepared)
    return converted


def _configuration(dynamic: bool) -> QuantizationConfig:
    """Weights symmetric per channel, activations asymmetric; the scales as small as need be."""
    usual = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    weight = dataclasses.replace(
        usual.weight,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=_LEAST_SCALE),
    )
    if dynamic:
        return dataclasses.replace(usual, weight=weight)
    activation = dataclasses.replace(
        usual.input_activation,
        observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=_LEAST_SCALE),
    )
    return dataclasses.replace(
        usual, weight=weight, input_activation=activation, output_activation=activation
    )


def _module(node: Node) -> str:
    """The name of the module that a node was traced from."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name: str = stack[-1][0] if stack else ""
    return name.removeprefix("L['self'].")


class Partitioner(XnnpackPartitioner):  # type: ignore[misc]
    """XNNPACK's, but with one subgraph where nothing that stays outside lies between several.

    Its own search ends with a new one after each group of linear layers that share an input; what
    crosses a border is copied. It takes the conversions of `fp16_convert_ops`, too.
    """

    def __init__(self) -> None:
        super().__init__([*ALL_PARTITIONER_CONFIGS, *fp16_convert_ops.CONFIGS])

    def generate_partitions(self, ep: ExportedProgram) -> list[Partition]:
        """The subgraphs, as the base class finds them, or their union."""
        partitions: list[Partition] = super().generate_partitions(ep)
        nodes = [node for partition in partitions for node in partition.nodes]
        return [Partition(id=0, nodes=nodes)] if validate_partition(nodes) else partitions


def lower(program: ExportedProgram) -> EdgeProgramManager:
    """Hand to XNNPACK what it takes."""
    return to_edge_transform_and_lower(program, partitioner=[Partitioner()])


def runner(path: Path, max_frames: int) -> parity.Runner:
    """Run a program by ExecuTorch's runtime.

    Raises:
        CheckFailed: it takes less than ``max_frames``; also from a run that fails.
    """
    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    longest = method.metadata.input_tensor_meta(0).sizes()[2]
    if longest != max_frames:
        raise CheckFailed(
            f"The program takes at most {longest} frames, the model {max_frames}.",
            "Nothing was written; see the example input in export/tracing.py.",
        )

    def run(mel: Float32Array) -> Float32Array:
        try:
            (features,) = method.execute([torch.from_numpy(mel)])
        except RuntimeError as error:
            raise CheckFailed(
                f"The program fails on an input of shape {mel.shape}: {error}.",
                "Nothing was written; its messages are above.",
            ) from error
        array: Float32Array = features.numpy()
        return array

    return run
