"""The device part of the model, as backends trace it."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from esrt.checkpoint import Checkpoint
from esrt.config import ModelConfig
from esrt.model import EdgeModel
from esrt.wire import Split
from export.graph_io import INPUT
from export.input_shapes import restrict_lengths


def load_edge_model(checkpoint: Checkpoint, lengths: Sequence[int]) -> EdgeModel:
    """Load a checkpoint's edge model in the form that is exported.

    Attention is plain matrix products and softmax: SDPA decomposes into a guard for fully masked
    rows, which do not occur here. The configuration is that of a graph for ``lengths`` (mel
    frames; see `restrict_lengths`).

    Raises:
        CheckpointError: the weights do not fit the configuration.
    """
    model = checkpoint.edge_model()
    model.encoder.set_attn_implementation("eager")
    model.q_former.qformer.set_attn_implementation("eager")
    model.config = restrict_lengths(checkpoint.config, lengths)
    return model


class DeviceGraph(nn.Module):
    """Transformers' modules up to the split, for one utterance.

    Log-mel (1, mel bins, frames) to features (1, tokens, width).
    """

    def __init__(self, model: EdgeModel, split: Split) -> None:
        super().__init__()
        self.model = model
        self.split = split

    def forward(self, mel: Tensor) -> Tensor:
        """Run encoder and Q-Former, and the projector for the ``adapter`` split."""
        features = self.model.features(mel)
        return features if self.split is Split.QFORMER else self.model.mlp(features)


class Fp16Graph(nn.Module):
    """fp16 copy of a graph, with a float32 input and a float32 output."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.inner = copy.deepcopy(graph).half()

    def forward(self, mel: Tensor) -> Tensor:
        """Run the copy."""
        features: Tensor = self.inner(mel.half())
        return features.float()


def trace(graph: nn.Module, config: ModelConfig) -> torch.export.ExportedProgram:
    """Export a graph from log-mel to features for every length that the model takes.

    The example is one block shorter than the longest input. With the longest input, a slice of a
    table of that length would make the length constant. With a short input, torch would choose a
    convolution for small inputs, and ExecuTorch would plan memory for them only.
    """
    frames = _dynamic_frames(config)
    length = config.max_frames if frames is None else config.max_frames - config.frame_multiple
    example = torch.zeros(1, config.encoder.mel_bins, length)
    return torch.export.export(
        graph,
        (example,),
        dynamic_shapes=None if frames is None else {INPUT: frames},
        strict=False,
    )


def _dynamic_frames(config: ModelConfig) -> dict[int, torch.export.Dim] | None:
    """torch.export's description of the free length; ``None`` for models of a fixed length."""
    if config.padded:
        return None
    multiple = config.frame_multiple
    blocks = torch.export.Dim("blocks", min=2, max=config.max_frames // multiple)
    return {2: multiple * blocks}
