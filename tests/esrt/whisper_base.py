"""The whole Whisper of the packages in transformers: our tensors in the encoder, and its decoder.

The decoder is converted here, with rules of its own, to let transformers transcribe a recording.
"""

from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from esrt.arrays import Float32Array
from esrt.config import WHISPER_BASE
from esrt.ctranslate2 import read_variables
from esrt.pretrained_encoder import PACKAGES, encoder_tensors

LAYER_MODULES = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_0": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_1": "encoder_attn.k_proj encoder_attn.v_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
MODULES = {
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
    "layer_norm": "layer_norm",
    **{
        f"layer_{layer}/{source}": " ".join(f"layers.{layer}.{name}" for name in names.split())
        for layer in range(6)
        for source, names in LAYER_MODULES.items()
    },
}
START, ENGLISH, TRANSCRIBE, NO_TIMESTAMPS, END = 50258, 50259, 50359, 50363, 50257


def package_files() -> list[Path]:
    """Both halves of the CTranslate2 model."""
    return [Path(str(distribution(name).locate_file(file))) for name, file in PACKAGES.items()]


def whisper_base() -> WhisperForConditionalGeneration:
    """whisper-base in float32, in evaluation mode."""
    config = WhisperConfig(
        vocab_size=51865,
        num_mel_bins=80,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
    )
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    tensors = {
        **{f"encoder.{name}": tensor for name, tensor in encoder_tensors(WHISPER_BASE).items()},
        **{f"decoder.{name}": tensor for name, tensor in _decoder_tensors().items()},
    }
    model.model.load_state_dict({n: t.float() for n, t in tensors.items()}, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        decoder_start_token_id=START,
        eos_token_id=END,
        pad_token_id=END,
        no_timestamps_token_id=NO_TIMESTAMPS,
        is_multilingual=True,
        lang_to_id={"<|en|>": ENGLISH},
        task_to_id={"transcribe": TRANSCRIBE},
        max_new_tokens=60,
    )
    return model.eval()


def transcribe(model: WhisperForConditionalGeneration, mel: Float32Array) -> str:
    """English text of a log-mel (80, 3000)."""
    ids = model.generate(torch.from_numpy(mel[np.newaxis]), language="en", task="transcribe")
    tokenizer = Tokenizer.from_file(str(package_files()[0].with_name("tokenizer.json")))
    return str(tokenizer.decode(ids[0].tolist()))


def _decoder_tensors() -> dict[str, Tensor]:
    data = b"".join(path.read_bytes() for path in package_files())
    tensors: dict[str, Tensor] = {}
    for source, variable in read_variables(memoryview(data), "decoder/").items():
        module, _, kind = source.rpartition("/")
        if module not in MODULES:  # a number, such as that of the heads
            continue
        names = MODULES[module].split()
        for name, rows in zip(names, np.split(variable, len(names)), strict=True):
            if name.endswith("k_proj") and kind == "bias":
                assert not rows.any()
            else:
                parameter = "bias" if kind in ("bias", "beta") else "weight"
                tensors[f"{name}.{parameter}"] = torch.from_numpy(rows.copy())
    return tensors
