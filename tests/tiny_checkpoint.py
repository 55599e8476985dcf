"""A checkpoint that is small enough to be built in a test.

The encoder is random. The decoder is trained for a few seconds to answer eight prototype features
with ``transcript<|src|><|tgt|>translation`` and the end of sequence, in two directions. Tests then
see real separators, multi-byte characters and clear decisions; with random weights, many tokens
would be equally likely.
"""

import functools
from pathlib import Path

import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint, save_checkpoint
from esrt.config import EncoderConfig, ModelConfig, QFormerConfig
from esrt.languages import direction
from esrt.model import EdgeModel, Projector
from esrt.prompt import separator, target_text
from training.tokenizer import train_tokenizer

TINY = ModelConfig(
    name="esrt-tiny",
    encoder=EncoderConfig(width=32, layers=1, heads=2, inner_width=64, max_positions=200),
    q_former=QFormerConfig(
        width=24,
        layers=1,
        heads=2,
        inner_width=48,
        queries=1,
        stride=4,
        overlap=4,
        offset_bias=True,
    ),
    decoder_width=64,
    projector_width=48,
    padded=False,
    max_seconds=4.0,
    languages=("eng", "deu"),
)
SENTENCES = (
    ("good morning", "guten Morgen"),
    ("three apples", "drei Äpfel"),
    ("the weather is nice", "das Wetter ist schön"),
    ("21 kilometers", "21 Kilometer"),
    ("New Zealand", "新西兰"),
    ("thank you very much", "большое спасибо"),
    ("a café in Zürich 😀", "ein Café in Zürich 😀"),
    ("no", "nein"),
)
DIRECTIONS = (("eng", "deu"), ("deu", "eng"))


def features(sentence: int, tokens: int, seed: int = 0) -> Float32Array:
    """Q-Former features (tokens, width) of a sentence: a prototype plus noise."""
    prototype = np.random.default_rng(sentence).standard_normal(TINY.q_former.width)
    noise = np.random.default_rng((sentence, tokens, seed)).standard_normal(
        (tokens, TINY.q_former.width)
    )
    return (prototype + 0.3 * noise).astype(np.float32)


def tiny_checkpoint(folder: Path) -> Checkpoint:
    """Write the tiny checkpoint to a folder; the first call in a process takes a few seconds."""
    model, decoder, tokenizer = _parts()
    return save_checkpoint(folder, model, decoder, tokenizer, torch.float32)


@functools.cache
def _parts() -> tuple[EdgeModel, Gemma3ForCausalLM, PreTrainedTokenizerFast]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one order of sums, so that the model is the same everywhere
    try:
        return _trained()
    finally:
        torch.set_num_threads(threads)


def _trained() -> tuple[EdgeModel, Gemma3ForCausalLM, PreTrainedTokenizerFast]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # With this vocabulary, most characters beyond ASCII take several tokens.
        tokenizer = train_tokenizer([text for pair in SENTENCES for text in pair], 360)
        model = EdgeModel(TINY).eval()
        decoder = Gemma3ForCausalLM(
            Gemma3TextConfig(
                vocab_size=len(tokenizer),
                hidden_size=TINY.decoder_width,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=32,
                query_pre_attn_scalar=32,
                max_position_embeddings=512,
                sliding_window=64,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
            )
        )
        _train(decoder, tokenizer, model.mlp)
    return model, decoder.eval(), tokenizer


def _train(
    decoder: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerFast, projector: Projector
) -> None:
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    random = np.random.default_rng(0)
    for step in range(220):
        tokens = int(random.integers(1, TINY.max_tokens + 1))
        rows, texts = [], []
        for sentence, pair in enumerate(SENTENCES):
            with torch.inference_mode():
                spoken = projector(torch.from_numpy(features(sentence, tokens, seed=1 + step)))
            for codes, (transcript, translation) in zip(
                DIRECTIONS, (pair, pair[::-1]), strict=True
            ):
                source, target = direction(*codes)
                rows.append(spoken)
                texts.append(
                    separator(source, target) + target_text(transcript, translation, source, target)
                )
        batch = tokenizer([text + tokenizer.eos_token for text in texts], padding=True,
                          padding_side="right", return_tensors="pt")  # fmt: skip
        prefix = torch.stack(rows).clone()
        inputs = torch.cat([prefix, decoder.get_input_embeddings()(batch.input_ids)], dim=1)
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        labels[:, :2] = -100
        labels = torch.cat([torch.full(prefix.shape[:2], -100), labels], dim=1)
        loss = decoder(inputs_embeds=inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
