"""whisper-base with its own decoder, from the encoder's packages: the reference on open speech.

The decoder's weights are converted here, the encoder's are those of `esrt.pretrained_encoder`.
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
from esrt.features import log_mel_features
from esrt.languages import Language
from esrt.pretrained_encoder import PACKAGES, encoder_tensors

_LAYER_MODULES = {
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
_MODULES = {
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
    "layer_norm": "layer_norm",
    **{
        f"layer_{layer}/{source}": " ".join(f"layers.{layer}.{name}" for name in names.split())
        for layer in range(6)
        for source, names in _LAYER_MODULES.items()
    },
}
_START, _TRANSCRIBE, _NO_TIMESTAMPS, _END = 50258, 50359, 50363, 50257
_SECONDS = 30.0
# Whisper's names of the languages that have recordings.
_NAMES = ("en", "de", "nl", "ru")
_MAX_NEW_TOKENS = 60


class WhisperReference:
    """Transcribes with whisper-base and its own greedy decoder.

    Attributes:
        model: the whole model in float32, in evaluation mode.

    Raises:
        CheckpointError: the encoder's packages are missing or damaged.
    """

    def __init__(self) -> None:
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
            **{f"encoder.{name}": value for name, value in encoder_tensors(WHISPER_BASE).items()},
            **{f"decoder.{name}": value for name, value in _decoder_tensors().items()},
        }
        model.model.load_state_dict({n: t.float() for n, t in tensors.items()}, assign=True)
        model.tie_weights()
        path = package_files()[0].with_name("tokenizer.json")
        self._tokenizer = Tokenizer.from_file(str(path))
        tags = {name: self._tokenizer.token_to_id(f"<|{name}|>") for name in _NAMES}
        model.generation_config = GenerationConfig(
            decoder_start_token_id=_START,
            eos_token_id=_END,
            pad_token_id=_END,
            no_timestamps_token_id=_NO_TIMESTAMPS,
            is_multilingual=True,
            lang_to_id={f"<|{name}|>": tag for name, tag in tags.items() if tag},
            task_to_id={"transcribe": _TRANSCRIBE},
            max_new_tokens=_MAX_NEW_TOKENS,
        )
        self.model = model.eval()

    @torch.inference_mode()
    def transcribe(self, audio: Float32Array, language: Language) -> str:
        """Transcribe up to 30 s of speech, which Whisper reads padded to 30 s.

        Args:
            audio: mono, 16 kHz, shape (samples,).
            language: language of the speech.
        """
        mel = log_mel_features(audio, mel_bins=80, frame_multiple=2, padded_seconds=_SECONDS)
        (name,) = (name for name in language.others if name in _NAMES)
        ids = self.model.generate(
            torch.from_numpy(mel[np.newaxis]), language=name, task="transcribe"
        )
        return str(self._tokenizer.decode(ids[0].tolist())).strip()


def package_files() -> list[Path]:
    """Both halves of the CTranslate2 model."""
    return [Path(str(distribution(name).locate_file(file))) for name, file in PACKAGES.items()]


def _decoder_tensors() -> dict[str, Tensor]:
    data = b"".join(path.read_bytes() for path in package_files())
    tensors: dict[str, Tensor] = {}
    for source, variable in read_variables(memoryview(data), "decoder/").items():
        module, _, kind = source.rpartition("/")
        if module not in _MODULES:  # a number, such as that of the heads
            continue
        names = _MODULES[module].split()
        for name, rows in zip(names, np.split(variable, len(names)), strict=True):
            if name.endswith("k_proj") and kind == "bias":
                assert not rows.any()
            else:
                parameter = "bias" if kind in ("bias", "beta") else "weight"
                tensors[f"{name}.{parameter}"] = torch.from_numpy(rows.copy())
    return tensors
