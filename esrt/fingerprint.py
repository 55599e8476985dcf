"""Hashes of configurations and tensors."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from esrt.config import ModelConfig


def digest(config: ModelConfig, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Fingerprint of a configuration and tensors: the first 16 hex digits of their SHA-256.

    The hash covers the configuration as compact JSON with sorted keys, without ``name`` and
    ``languages``, which change no feature. Then follows, for each tensor, one line of text with
    name, dtype and shape, and the tensor's bytes.

    Published weights of an encoder (``encoder_weights``) are covered by their SHA-256, which is
    part of the configuration. So a gateway computes the fingerprint without these weights.

    Args:
        config: the configuration.
        tensors: names and tensors, sorted by name.
    """
    shapes = {
        key: value for key, value in config.to_dict().items() if key not in ("name", "languages")
    }
    if config.encoder_weights is not None:
        shapes["encoder_weights"] = config.encoder_weights.sha256
    sha256 = hashlib.sha256(json.dumps(shapes, sort_keys=True, separators=(",", ":")).encode())
    _update(sha256, tensors)
    return sha256.hexdigest()[:16]


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors in float16, sorted by name, each in the form that `digest` describes."""
    sha256 = hashlib.sha256()
    _update(sha256, ((name, tensors[name].half()) for name in sorted(tensors)))
    return sha256.hexdigest()


def _update(sha256: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in tensors:
        sha256.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha256.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
