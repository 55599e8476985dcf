"""The device part of the model, as it is converted to Core ML."""

import torch
from torch import Tensor, nn

from esrt.model import EdgeModel
from esrt.wire import Split

# Added to the scores of masked positions. The -1e9 of `esrt.model` is infinite in fp16.
_MASKED = -1e4


class CoreMLGraph(nn.Module):
    """Encoder and Q-Former up to the split, for one utterance.

    Log-mel (1, mel bins, frames) to features (1, tokens, width). The modules are transformers',
    whose layer norms, linear layers and GELUs are operations of Core ML. The Q-Former's queries and
    window are tables, because the arithmetic that computes them is not exact in fp16.

    Args:
        model: source of the weights, as `export.tracing.load_edge_model` returns it.
        split: end of the graph.
    """

    queries: Tensor
    mask: Tensor | None

    def __init__(self, model: EdgeModel, split: Split) -> None:
        super().__init__()
        self.model = model
        self.split = split
        positions = model.config.max_frames // 2
        with torch.no_grad():
            queries = model.q_former.qformer.layernorm(model.q_former.queries(positions))
            scores = model.q_former.window_scores(positions)
        mask = None if scores is None else scores[None].clamp(min=_MASKED)
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
        return features if self.split is Split.QFORMER else self.model.mlp(features)
