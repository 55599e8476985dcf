"""The device part of the model, rewritten in operators that XNNPACK supports.

The modules of `esrt.model` are transformers'. Their reshapes name the symbolic length and their
layer norms have no XNNPACK kernel, so each of them would split the graph. Here, the same weights
run in two dimensions, every reshape has at most one inferred dimension, and layer norm is written
as matrix products. Everything between the slices of tables and the output is then one subgraph.
"""

import torch
from torch import Tensor, nn
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerAttention, Blip2QFormerLayer
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoderLayer

from esrt.config import ModelConfig
from esrt.model import EdgeModel, Projector, QFormerAdapter, SpeechEncoder
from esrt.wire import Split
from export.backends.xnnpack import fp16_convert_ops


class XnnpackGraph(nn.Module):
    """Encoder and Q-Former up to the split, for one utterance.

    Log-mel (1, mel bins, frames) to features (1, tokens, width).

    Args:
        model: source of the weights; it is not changed.
        split: end of the graph.
        half_attention: multiply queries, keys and values in float16; the rest has the
            weights' type.
    """

    def __init__(self, model: EdgeModel, split: Split, *, half_attention: bool = False) -> None:
        super().__init__()
        self.config: ModelConfig = model.config
        self.encoder = _Encoder(model.encoder)
        self.q_former = _QFormer(model.q_former, model.config)
        self.mlp = _projector(model.mlp) if split is Split.ADAPTER else nn.Identity()
        self.width = model.config.feature_width(split)
        if half_attention:
            for module in self.modules():
                if isinstance(module, Attention):
                    module.half_products = True
            self.q_former.halve_mask()
        self.eval()

    def forward(self, mel: Tensor) -> Tensor:
        """Run encoder and Q-Former, and the projector for the ``adapter`` split."""
        features: Tensor = self.mlp(self.q_former(self.encoder(mel), mel.shape[2]))
        return features.view(1, -1, self.width)


class LayerNorm(nn.Module):
    """Layer norm over the rows of (rows, width), with means as products with a vector.

    XNNPACK has no operator for a mean over the last axis.

    Args:
        norm: source of the weights.
        centred: the rows have zero mean, so none is subtracted.
    """

    mean: Tensor
    eps: Tensor

    def __init__(self, norm: nn.LayerNorm, *, centred: bool = False) -> None:
        super().__init__()
        (width,) = norm.normalized_shape
        self.weight, self.bias, self.centred = norm.weight, norm.bias, centred
        self.register_buffer("mean", _mean(width))
        self.register_buffer("eps", torch.tensor([norm.eps]))

    def forward(self, rows: Tensor) -> Tensor:
        """Normalize (rows, width)."""
        if not self.centred:
            rows = rows - rows @ self.mean
        scale = torch.rsqrt(torch.addmm(self.eps, rows * rows, self.mean))
        return rows * scale * self.weight + self.bias


class Attention(nn.Module):
    """Multi-head attention of (rows, width) on (columns, width), without the output projection.

    With ``half_products``, everything between the linear layers is float16, including the mask.
    """

    def __init__(self, query: nn.Linear, key: nn.Linear, value: nn.Linear, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, query.out_features // heads
        self.half_products = False
        # The scaling of the scores is folded into the query's weights.
        self.query: nn.Module = _scaled(query, self.width**-0.5)
        self.key, self.value = key, value

    def forward(self, rows: Tensor, columns: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; ``mask``, (1 or heads, rows, columns), is added to the scores."""
        keys = self._heads(self.key(columns)).permute(1, 2, 0)
        scores = torch.bmm(self._heads(self.query(rows)).transpose(0, 1), keys)
        if mask is not None:
            scores = scores + mask
        values = self._heads(self.value(columns)).transpose(0, 1)
        context = torch.bmm(scores.softmax(-1), values)
        context = context.transpose(0, 1).contiguous().view(-1, self.heads * self.width)
        return fp16_convert_ops.to_float(context) if self.half_products else context

    def _heads(self, states: Tensor) -> Tensor:
        if self.half_products:
            states = fp16_convert_ops.to_half(states)
        return states.view(-1, self.heads, self.width)


class _EncoderLayer(nn.Module):
    """Encoder layer whose residual branches have zero mean over the width.

    The layer norms that read the states would subtract the mean anyway, so it is subtracted from
    the weights once (Ashkboos et al., SliceGPT, arXiv 2401.15024, section 3.1).
    """

    def __init__(self, layer: WhisperEncoderLayer) -> None:
        super().__init__()
        attention: WhisperAttention = layer.self_attn
        self.attention_norm = LayerNorm(layer.self_attn_layer_norm, centred=True)
        self.attention = Attention(
            attention.q_proj, attention.k_proj, attention.v_proj, attention.num_heads
        )
        self.out = _centred(attention.out_proj)
        self.norm = LayerNorm(layer.final_layer_norm, centred=True)
        self.fc1, self.fc2 = layer.fc1, _centred(layer.fc2)

    def forward(self, states: Tensor) -> Tensor:
        normed = self.attention_norm(states)
        states = states + self.out(self.attention(normed, normed))
        inner = nn.functional.gelu(self.fc1(self.norm(states)))
        output: Tensor = states + self.fc2(inner)
        return output


class _Encoder(nn.Module):
    positions: Tensor
    mean: Tensor

    def __init__(self, encoder: SpeechEncoder) -> None:
        super().__init__()
        self.width = encoder.conv2.out_channels
        self.conv1, self.conv2 = encoder.conv1, encoder.conv2
        self.register_buffer("positions", encoder.embed_positions.weight.detach().clone())
        self.register_buffer("mean", _mean(self.width))
        self.layers = nn.ModuleList(_EncoderLayer(layer) for layer in encoder.layers)
        self.norm = LayerNorm(encoder.layer_norm, centred=True)

    def forward(self, mel: Tensor) -> Tensor:
        states = nn.functional.gelu(self.conv2(nn.functional.gelu(self.conv1(mel))))
        states = states.transpose(1, 2).contiguous().view(-1, self.width)
        states = states + self.positions[: mel.shape[2] // 2]
        states = states - states @ self.mean
        for layer in self.layers:
            states = layer(states)
        normed: Tensor = self.norm(states)
        return normed


class _QFormerAttention(nn.Module):
    def __init__(self, attention: Blip2QFormerAttention) -> None:
        super().__init__()
        inner = attention.attention
        self.attention = Attention(inner.query, inner.key, inner.value, inner.num_attention_heads)
        self.out, self.norm = attention.output.dense, LayerNorm(attention.output.LayerNorm)

    def forward(self, rows: Tensor, columns: Tensor, mask: Tensor | None = None) -> Tensor:
        normed: Tensor = self.norm(rows + self.out(self.attention(rows, columns, mask)))
        return normed


class _QFormerLayer(nn.Module):
    def __init__(self, layer: Blip2QFormerLayer) -> None:
        super().__init__()
        self.attention: nn.Module = _QFormerAttention(layer.attention)
        self.cross_attention = _QFormerAttention(layer.crossattention)
        self.fc1, self.fc2 = layer.intermediate_query.dense, layer.output_query.dense
        self.norm = LayerNorm(layer.output_query.LayerNorm)

    def forward(self, rows: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        rows = self.cross_attention(self.attention(rows, rows), states, mask)
        normed: Tensor = self.norm(rows + self.fc2(nn.functional.gelu(self.fc1(rows))))
        return normed


class _Constant(nn.Module):
    """Output of a part whose input never changes."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, *_: Tensor) -> Tensor:
        return self.value


class _QFormer(nn.Module):
    """Q-Former with tables of its normalized queries and of its attention window."""

    queries: Tensor
    mask: Tensor | None

    def __init__(self, adapter: QFormerAdapter, config: ModelConfig) -> None:
        super().__init__()
        layers = [_QFormerLayer(layer) for layer in adapter.qformer.encoder.layer]
        self.layers = nn.ModuleList(layers)
        positions = config.max_frames // 2
        with torch.no_grad():
            queries = adapter.qformer.layernorm(adapter.queries(positions))[0]
            mask = adapter.window_scores(positions)
        self.register_buffer("queries", queries)
        self.register_buffer("mask", mask)
        if mask is None or config.padded:
            self._fold_queries(layers[0])
        self.multiple = config.frame_multiple

    def forward(self, states: Tensor, frames: int) -> Tensor:
        rows, mask = self.queries, self.mask
        if mask is not None:
            tokens = frames // self.multiple
            rows, mask = rows[:tokens], mask[:, :tokens, : frames // 2]
        for layer in self.layers:
            rows = layer(rows, states, mask)
        return rows

    def halve_mask(self) -> None:
        """Convert the window's table to float16, finite also after scores were added to it."""
        if self.mask is not None:
            self.mask = self.mask.clamp(min=torch.finfo(torch.half).min / 2).half()

    @torch.no_grad()
    def _fold_queries(self, first: _QFormerLayer) -> None:
        """Compute the first self-attention of a fixed number of queries ahead of time.

        The result does not depend on the speech. XNNPACK does not quantize a constant dynamically.
        """
        rows = first.attention(self.queries, self.queries)
        cross = first.cross_attention.attention
        first.attention = _Constant(rows)
        cross.query = _Constant(cross.query(rows))


def _projector(projector: Projector) -> nn.Module:
    return nn.Sequential(
        projector.linear1, projector.relu, projector.linear2, LayerNorm(projector.norm)
    )


def _mean(width: int) -> Tensor:
    """Vector whose product with a row is the row's mean."""
    return torch.full((width, 1), 1 / width)


@torch.no_grad()
def _centred(linear: nn.Linear) -> nn.Linear:
    """Layer whose output is that of ``linear`` minus its mean over the width."""
    centred = nn.Linear(linear.in_features, linear.out_features)
    centred.weight.copy_(linear.weight - linear.weight.mean(0))
    centred.bias.copy_(linear.bias - linear.bias.mean())
    return centred


def _scaled(linear: nn.Linear, factor: float) -> nn.Linear:
    """Layer whose output is ``factor`` times that of ``linear``."""
    scaled = nn.Linear(linear.in_features, linear.out_features)
    with torch.no_grad():
        scaled.weight.copy_(linear.weight * factor)
        scaled.bias.copy_(linear.bias * factor)
    return scaled
