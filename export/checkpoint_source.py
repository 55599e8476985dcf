"""What ``--checkpoint`` may name: a folder, a Hugging Face repository, or random weights."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download

from esrt.checkpoint import Checkpoint, open_checkpoint, random_checkpoint
from esrt.config import named_config
from esrt.errors import CheckpointError
from esrt.hf_checkpoint import is_hf_checkpoint, open_hf_checkpoint

RANDOM = "random:"
# Weights and their description; never code.
_PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "decoder/*.json",
    "decoder/tokenizer.model",
]
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def open_source(name: str) -> Checkpoint:
    """Open a checkpoint by what the user typed.

    Args:
        name: ``random:esrt-4b`` for random weights of a named configuration, a folder, or, where
            there is none, ``OWNER/NAME`` of a Hugging Face repository, which is downloaded to its
            own cache once. Nothing of it is executed.

    Raises:
        CheckpointError: there is none of that name, it cannot be downloaded, or it is damaged.
    """
    if name.startswith(RANDOM):
        return random_checkpoint(named_config(name.removeprefix(RANDOM)))
    folder = Path(name)
    # OWNER/NAME where OWNER is a folder here is a mistyped path.
    if not folder.exists() and not folder.parent.is_dir() and _REPOSITORY.fullmatch(name):
        return _named(_downloaded(name), name)
    return _opened(folder)


def _opened(folder: Path) -> Checkpoint:
    return open_hf_checkpoint(folder) if is_hf_checkpoint(folder) else open_checkpoint(folder)


def _named(folder: Path, name: str) -> Checkpoint:
    """Errors of a downloaded checkpoint name the repository, not only a folder of the cache."""
    try:
        return _opened(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{name} cannot be used: {error.cause}", error.remedy) from error


def _downloaded(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=_PATTERNS))
    except Exception as error:  # its own, those of HTTP, and those of the file system
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{name} is neither a folder here nor could it be downloaded from Hugging Face:"
            f" {reason[:300].rstrip('.')}.",
            "Check the name and the connection, or download it yourself and name the folder.",
        ) from error
