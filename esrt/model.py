"""The edge model in torch: Whisper encoder, Q-Former adapter and projector.

The modules are transformers', so released weights load by name. A batch may have utterances of
different lengths: states after the end of an utterance are masked, so that each row of the output
equals the output for that utterance alone.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, Gemma3ForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from esrt.config import EncoderConfig, ModelConfig, QFormerConfig


class SpeechEncoder(WhisperEncoder):  # type: ignore[misc]
    """Whisper encoder of transformers, for any length up to ``max_positions``."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(
            WhisperConfig(
                d_model=config.width,
                encoder_layers=config.layers,
                encoder_attention_heads=config.heads,
                encoder_ffn_dim=config.inner_width,
                num_mel_bins=config.mel_bins,
                max_source_positions=config.max_positions,
                dropout=0.0,
                attn_implementation="sdpa",
            )
        )
        self.embed_positions.weight.data.copy_(_sinusoids(config.max_positions, config.width))

    def forward(self, mel: Tensor, frames: Tensor | None = None) -> Tensor:
        """Encode log-mel spectrograms.

        Args:
            mel: (batch, mel_bins, frames), an even number of frames.
            frames: (batch,) valid frames of each row, even; ``None`` if all frames are valid.

        Returns:
            (batch, frames / 2, width).
        """
        if frames is None:
            valid = attention_mask = None
        else:
            valid = _valid(frames, mel.shape[-1])
            mel = mel * valid[:, None]
            attention_mask = additive_mask(valid[:, None, None, ::2])
        states = nn.functional.gelu(self.conv1(mel))
        if valid is not None:
            states = states * valid[:, None]
        states = nn.functional.gelu(self.conv2(states)).transpose(1, 2)
        states = states + self.embed_positions.weight[: states.shape[1]]
        for layer in self.layers:
            states = layer(states, attention_mask)
        normed: Tensor = self.layer_norm(states)
        return normed


class QFormerAdapter(nn.Module):
    """BLIP-2 Q-Former with learned queries that attend to the encoder's states."""

    def __init__(self, config: QFormerConfig, encoder_width: int) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Parameter(torch.randn(1, config.queries, config.width) * 0.02)
        self.offset_bias = nn.Parameter(_first_offset_bias(config)) if config.offset_bias else None
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.inner_width,
                encoder_hidden_size=encoder_width,
                cross_attention_frequency=1,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                attn_implementation="sdpa",
            )
        )

    def forward(self, states: Tensor, positions: Tensor | None = None) -> Tensor:
        """Turn encoder states into feature tokens.

        Args:
            states: (batch, positions, encoder width).
            positions: (batch,) valid states of each row; ``None`` if all states are valid.

        Returns:
            (batch, tokens, width).
        """
        length, stride = states.shape[1], self.config.stride
        readable = None if positions is None else _valid(positions, length)[:, None]
        valid = None
        queries = self.queries(length)
        window, bias = self.window(length), self.bias(length)
        if stride is not None and window is not None:
            readable = window[None] if readable is None else window & readable
            if positions is not None:
                valid = _valid(positions // stride, queries.shape[1])
                # Attention with a fully masked row would give NaN.
                readable = readable | ~valid[:, :, None]
        mask = None if readable is None else additive_mask(readable[:, None])
        if mask is not None and bias is not None:
            mask = mask + bias
        adapted: Tensor = self.qformer.encoder(
            self.qformer.layernorm(queries.expand(states.shape[0], -1, -1)),
            attention_mask=None if valid is None else additive_mask(valid[:, None, None]),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            query_length=queries.shape[1],
        ).last_hidden_state
        return adapted

    def queries(self, length: int) -> Tensor:
        """Queries before the layer norm, (1, tokens, width), for a number of encoder states."""
        if self.config.stride is None:
            return self.query
        return self.query + _sinusoids(length // self.config.stride, self.config.width).to(
            self.query
        )

    def window(self, length: int) -> Tensor | None:
        """Mask (tokens, length): states that each token attends to; ``None`` without stride."""
        if self.config.stride is None:
            return None
        offset = self._offset(length, self.config.stride)
        return (offset >= 0) & (offset < self.config.stride + 2 * self.config.overlap)

    def bias(self, length: int) -> Tensor | None:
        """Numbers (heads, tokens, length) to add to the scores within the window, if any."""
        if self.offset_bias is None or self.config.stride is None:
            return None
        offset = self._offset(length, self.config.stride)
        return self.offset_bias[:, offset.clamp(0, self.offset_bias.shape[1] - 1)]

    def window_scores(self, length: int) -> Tensor | None:
        """Numbers (1 or heads, tokens, length) to add to the scores: mask and bias, if any."""
        window, bias = self.window(length), self.bias(length)
        if window is None:
            return None
        mask = additive_mask(window)[None]
        return mask if bias is None else mask + bias

    def _offset(self, length: int, stride: int) -> Tensor:
        """Place of each state in each token's window, (tokens, length); outside of it as well."""
        device = self.query.device
        start = stride * torch.arange(length // stride, device=device)[:, None]
        return torch.arange(length, device=device) - start + self.config.overlap


class Projector(nn.Module):
    """Projection from the Q-Former's to the decoder's width: linear, ReLU, linear, layer norm."""

    def __init__(self, width: int, inner_width: int, decoder_width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, inner_width)
        self.relu = nn.ReLU()
        self.linear2 = nn.Linear(inner_width, decoder_width)
        self.norm = nn.LayerNorm(decoder_width, eps=1e-5)

    def forward(self, features: Tensor) -> Tensor:
        """Features (..., width) to embeddings (..., decoder width)."""
        projected: Tensor = self.norm(self.linear2(self.relu(self.linear1(features))))
        return projected


class EdgeModel(nn.Module):
    """Encoder, Q-Former and projector, with the tensor names of the released checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SpeechEncoder(config.encoder)
        self.q_former = QFormerAdapter(config.q_former, config.encoder.width)
        self.mlp = Projector(config.q_former.width, config.projector_width, config.decoder_width)

    def features(self, mel: Tensor, frames: Tensor | None = None) -> Tensor:
        """Log-mel (batch, mel_bins, frames) to Q-Former output (batch, tokens, width)."""
        states = self.encoder(mel, frames)
        adapted: Tensor = self.q_former(states, None if frames is None else frames // 2)
        return adapted

    def forward(self, mel: Tensor, frames: Tensor | None = None) -> Tensor:
        """Log-mel (batch, mel_bins, frames) to embeddings (batch, tokens, decoder width)."""
        embeddings: Tensor = self.mlp(self.features(mel, frames))
        return embeddings


class Tokenizer(Protocol):
    """The part of a transformers tokenizer's interface that decoding uses."""

    eos_token_id: int

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        """Token ids of a text."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text of token ids."""


def join_features_and_text(
    embeddings: Tensor, tokens: Tensor, text: Tensor
) -> tuple[Tensor, Tensor]:
    """Input of the decoder: the padding, then the features, then the text of each row.

    Args:
        embeddings: features, (batch, features, width), rows padded at the end.
        tokens: (batch,) valid features of each row.
        text: embeddings of the text, (batch, length, width).

    Returns:
        The sequence (batch, features + length, width), and its mask (batch, features + length),
        which is false for padding.
    """
    sequence = torch.cat([embeddings, text.to(embeddings)], dim=1)
    shift = (embeddings.shape[1] - tokens)[:, None]
    position = torch.arange(sequence.shape[1], device=tokens.device)[None] - shift
    order = torch.where(position < tokens[:, None], position, position + shift).clamp(min=0)
    return sequence.gather(1, order[..., None].expand_as(sequence)), position >= 0


@torch.inference_mode()
def generate_greedy(
    decoder: Gemma3ForCausalLM,
    tokenizer: Tokenizer,
    embeddings: Tensor,
    tokens: Tensor,
    prompts: list[str],
    max_new_tokens: int,
) -> list[str]:
    """Decode a batch greedily and keep special tokens; the reference for every engine.

    Args:
        decoder: the language model.
        tokenizer: the decoder's tokenizer.
        embeddings: (batch, tokens, decoder width), rows padded at the end.
        tokens: (batch,) valid tokens of each row.
        prompts: text after the features, one per row, all with the same number of tokens.
        max_new_tokens: largest number of generated tokens.
    """
    generated = generate_ids(decoder, tokenizer, embeddings, tokens, prompts, max_new_tokens)
    return [
        tokenizer.decode(
            row[: row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row,
            skip_special_tokens=False,
        )
        for row in generated.tolist()
    ]


@torch.inference_mode()
def generate_ids(
    decoder: Gemma3ForCausalLM,
    tokenizer: Tokenizer,
    embeddings: Tensor,
    tokens: Tensor,
    prompts: list[str],
    max_new_tokens: int,
    **options: Any,
) -> Any:
    """Decode a batch greedily, as `generate_greedy`, into what transformers' ``generate`` returns.

    ``options`` are more of its arguments. Without them it returns a tensor of ids, (batch, length).
    """
    ids = [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]
    text = decoder.get_input_embeddings()(torch.tensor(ids, device=embeddings.device))
    sequence, mask = join_features_and_text(embeddings, tokens, text)
    return decoder.generate(
        inputs_embeds=sequence,
        attention_mask=mask.long(),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        **options,
    )


def _valid(lengths: Tensor, total: int) -> Tensor:
    """Mask (batch, total) that is true within the lengths (batch,)."""
    return torch.arange(total, device=lengths.device)[None] < lengths[:, None]


def additive_mask(mask: Tensor) -> Tensor:
    """Values to add to attention scores: 0 where the mask is true, -1e9 elsewhere."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -1e9)


def _first_offset_bias(config: QFormerConfig) -> Tensor:
    """Numbers (heads, window) by which the heads first read different states of a token's own."""
    assert config.stride is not None
    place = torch.arange(config.stride + 2 * config.overlap)
    own = (torch.arange(config.heads) + 0.5) * config.stride / config.heads - 0.5
    return -((place - config.overlap - own[:, None]) ** 2).clamp(max=8)


def _sinusoids(positions: int, width: int) -> Tensor:
    """Sinusoidal position embeddings of Whisper's encoder, (positions, width)."""
    scale = math.log(10_000) / (width // 2 - 1)
    angles = torch.arange(positions)[:, None] * torch.exp(-scale * torch.arange(width // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1)
