"""Sources of ``--checkpoint``: a folder, a Hugging Face repository, or random weights."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download

from esrt import bundled
from esrt.checkpoint import Checkpoint, open_checkpoint, random_checkpoint
from esrt.config import named_config
from esrt.errors import CheckpointError
from esrt.hf_checkpoint import is_hf_checkpoint, open_hf_checkpoint

RANDOM = "random:"
# Files of a repository that are downloaded: weights and their description, never code.
_PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "decoder/*.json",
    "decoder/tokenizer.model",
]
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def open_bundled() -> Checkpoint:
    """Open the bundled checkpoint, which is part of the repository and not of an installed wheel.

    Raises:
        CheckpointError: it is not here, or a file is damaged.
    """
    if not bundled.CHECKPOINT.is_dir():
        raise CheckpointError(
            f"The bundled checkpoint {bundled.CHECKPOINT} is not part of an installed package.",
            "Pass --checkpoint with a folder or a Hugging Face repository, such as yxdu/ESRT-4B.",
        )
    return open_checkpoint(bundled.CHECKPOINT)


def open_source(name: str) -> Checkpoint:
    """Open a checkpoint by the name that the user typed.

    Args:
        name: a folder; ``random:NAME`` for random weights of a named configuration; or
            ``OWNER/NAME`` of a Hugging Face repository, if no such folder exists. A repository is
            downloaded once, to Hugging Face's cache. No code of it is executed.

    Raises:
        CheckpointError: no checkpoint has that name, the download failed, or a file is damaged.
    """
    if name.startswith(RANDOM):
        return random_checkpoint(named_config(name.removeprefix(RANDOM)))
    folder = Path(name)
    # OWNER/NAME is a mistyped path if OWNER is a folder here.
    if not folder.exists() and not folder.parent.is_dir() and _REPOSITORY.fullmatch(name):
        snapshot = _download(name)
        try:
            return _open_folder(snapshot)
        except CheckpointError as error:  # names a folder of the cache only
            raise CheckpointError(f"{name} cannot be used: {error.cause}", error.remedy) from error
    return _open_folder(folder)


def _open_folder(folder: Path) -> Checkpoint:
    return open_hf_checkpoint(folder) if is_hf_checkpoint(folder) else open_checkpoint(folder)


def _download(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=_PATTERNS))
    except Exception as error:  # of huggingface_hub, of HTTP or of the file system
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{name} is not a folder, and its download from Hugging Face failed:"
            f" {reason[:300].rstrip('.')}.",
            "Check the name and the connection, or pass the folder of a downloaded checkpoint.",
        ) from error
