"""ExecuTorch's tools around XNNPACK: quantize, lower, run."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn
from torch.export import ExportedProgram
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from esrt.errors import CheckFailed
from export import parity

# Activations are quantized by what each input holds, so nothing of the speech is learned here; but
# the scales of the weights are only set where a run comes by.
CALIBRATION_CLIPS = 1


def quantized(program: ExportedProgram, mels: Iterable[parity.Array]) -> nn.Module:
    """The graph with its linear layers in int8, the rest in fp32.

    Weights per channel, activations dynamically per tensor: closer to torch than fixed ranges
    calibrated on the same clips, at nearly the same speed.

    Args:
        program: the float graph, as traced.
        mels: log-mels of speech, (128, frames) each.
    """
    quantizer = XNNPACKQuantizer()
    quantizer.set_module_type(
        nn.Linear, get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    )
    prepared = prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        for mel in itertools.islice(mels, CALIBRATION_CLIPS):
            prepared(torch.from_numpy(mel[None]))
    converted: nn.Module = convert_pt2e(prepared)
    return converted


def lower(program: ExportedProgram) -> EdgeProgramManager:
    """Hand to XNNPACK what it takes."""
    return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])


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
            "Nothing was written; see the example input in export/graph.py.",
        )

    def run(mel: parity.Array) -> parity.Array:
        try:
            (features,) = method.execute([torch.from_numpy(mel)])
        except RuntimeError as error:
            raise CheckFailed(
                f"The program fails on an input of shape {mel.shape}: {error}.",
                "Nothing was written; its messages are above.",
            ) from error
        array: parity.Array = features.numpy()
        return array

    return run
