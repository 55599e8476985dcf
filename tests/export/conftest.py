"""A checkpoint whose features depend on the speech, so that tolerances on them mean something."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.model import EdgeModel
from tests.tiny_checkpoint import tiny_checkpoint


@pytest.fixture(scope="session")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The tiny checkpoint with edge weights so large that features move as trained ones do.

    At the small weights that models start with, every token is nearly its query, whatever is
    said; a graph that ignored its input would pass.
    """
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "lively")
    random = torch.Generator().manual_seed(27)
    weights = {
        name: torch.randn(tensor.shape, generator=random) * tensor[0].numel() ** -0.5
        if tensor.dim() > 1 and "embed_positions" not in name
        else tensor
        for name, tensor in checkpoint.edge_model().state_dict().items()
    }
    save_file(weights, checkpoint.folder / "edge.safetensors")
    return open_checkpoint(Path(checkpoint.folder))


@pytest.fixture(scope="module")
def model(lively: Checkpoint) -> EdgeModel:
    return lively.edge_model()
