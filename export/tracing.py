"""What every target exports: the part of the model that runs on the device."""

import copy

import torch
from torch import Tensor, nn

from esrt.config import ModelConfig
from esrt.model import EdgeModel
from esrt.wire import Split

INPUT, OUTPUT = "mel", "features"


class DeviceGraph(nn.Module):
    """One utterance, log-mel (1, 128, frames) to features (1, tokens, width), up to the split."""

    def __init__(self, model: EdgeModel, split: Split) -> None:
        super().__init__()
        self.model = model.eval()
        self.split = split
        # Plain matrix products and softmax; SDPA decomposes into a guard for fully masked rows,
        # which do not occur here.
        model.encoder.set_attn_implementation("eager")
        model.q_former.qformer.set_attn_implementation("eager")

    def forward(self, mel: Tensor) -> Tensor:
        """Run encoder and Q-Former, and the projector for the ``adapter`` split."""
        features = self.model.features(mel)
        return features if self.split == "qformer" else self.model.mlp(features)


class HalfGraph(nn.Module):
    """A graph whose weights and arithmetic are fp16 and whose ends are float32.

    Args:
        graph: what to run; it is left as it is.
    """

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.inner = copy.deepcopy(graph).half()

    def forward(self, mel: Tensor) -> Tensor:
        """As the graph's."""
        features: Tensor = self.inner(mel.half())
        return features.float()


def trace(graph: nn.Module, config: ModelConfig) -> torch.export.ExportedProgram:
    """Export a graph from log-mel to features for every length that the model takes.

    The example is one block shorter than the longest input. At the longest, slices of tables of
    that very length would fix it; a short one would be worse: torch's choice of a convolution
    guards on small inputs, and ExecuTorch then plans memory for no more than that.
    """
    frames = dynamic_frames(config)
    length = config.max_frames if frames is None else config.max_frames - config.frame_multiple
    example = torch.zeros(1, config.encoder.mel_bins, length)
    return torch.export.export(
        graph,
        (example,),
        dynamic_shapes=None if frames is None else {INPUT: frames},
        strict=False,
    )


def dynamic_frames(config: ModelConfig) -> dict[int, torch.export.Dim] | None:
    """torch.export's description of the free length; ``None`` for models of a fixed one."""
    if config.padded:
        return None
    multiple = config.frame_multiple
    blocks = torch.export.Dim("blocks", min=2, max=config.max_frames // multiple)
    return {2: multiple * blocks}
