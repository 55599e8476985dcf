"""Checkpoints on disk, and the fingerprint that ties a phone's artifact to a cloud's decoder.

A checkpoint is a folder: ``config.json`` (the model's shapes), ``edge.safetensors`` (encoder,
Q-Former, projector) and ``decoder/`` (a Gemma 3 causal language model with its tokenizer, as
transformers and vLLM read it).
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from esrt.config import ModelConfig, named_config
from esrt.errors import CheckpointError
from esrt.model import EdgeModel, Projector
from esrt.wire import CODEC_TABLES_FILE, CodecTables, read_codec_tables

CONFIG_FILE = "config.json"
EDGE_FILE = "edge.safetensors"
DECODER_FOLDER = "decoder"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration has been read; weights are loaded on demand."""

    folder: Path
    config: ModelConfig
    fingerprint: str

    @property
    def decoder(self) -> Path:
        """The decoder's folder."""
        return self.folder / DECODER_FOLDER

    def edge_model(self) -> EdgeModel:
        """Encoder, Q-Former and projector in float32, in evaluation mode.

        Raises:
            CheckpointError: tensors are missing, unexpected or misshapen.
        """
        model = EdgeModel(self.config)
        load_strictly(model, load_file(self.folder / EDGE_FILE))
        return model.eval()

    def projector(self) -> Projector:
        """The projector alone, for the side that receives ``qformer`` features.

        Raises:
            CheckpointError: tensors are missing, unexpected or misshapen.
        """
        config = self.config
        model = Projector(config.q_former.width, config.projector_width, config.decoder_width)
        prefix = "mlp."
        with safe_open(self.folder / EDGE_FILE, "pt") as file:
            tensors = {
                name.removeprefix(prefix): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - not a mapping
                if name.startswith(prefix)
            }
        load_strictly(model, tensors)
        return model.eval()

    def codec_tables(self) -> CodecTables | None:
        """What the learned codecs know of the features; ``None`` where they were not gathered.

        Raises:
            CheckpointError: the file is damaged, or was made of other weights.
        """
        path = self.folder / CODEC_TABLES_FILE
        return read_codec_tables(path, self.fingerprint) if path.is_file() else None


@dataclass(frozen=True)
class RandomCheckpoint(Checkpoint):
    """A configuration with random weights, always the same; there are no files, and no decoder."""

    seed: int

    def edge_model(self) -> EdgeModel:
        """Encoder, Q-Former and projector in float32, in evaluation mode."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return EdgeModel(self.config).eval()

    def projector(self) -> Projector:
        """The projector alone."""
        return self.edge_model().mlp


def random_checkpoint(config: ModelConfig, seed: int = 0) -> RandomCheckpoint:
    """Random weights of a configuration, for tests and measurements of size and speed."""
    marked = digest(config, [("random", torch.tensor([seed]))])
    return RandomCheckpoint(Path(f"random:{config.name}"), config, marked, seed)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's configuration and compute its fingerprint.

    Raises:
        CheckpointError: the folder is not a checkpoint, or a file in it is damaged.
    """
    remedy = "Name a folder with config.json, edge.safetensors and decoder/, as models/esrt-nano."
    try:
        config = ModelConfig.from_dict(json.loads((folder / CONFIG_FILE).read_text("utf-8")))
        (folder / DECODER_FOLDER / "config.json").stat()
        return Checkpoint(folder, config, fingerprint(config, folder / EDGE_FILE))
    except OSError as error:
        reason = error.strerror or error  # safetensors' errors have no strerror
        raise CheckpointError(f"No checkpoint in {folder}: {reason}.", remedy) from error
    except (ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"The checkpoint in {folder} is damaged: {error}.", remedy) from error


def random_edge_model(name: str, seed: int = 0) -> EdgeModel:
    """A named configuration with random weights, for tests and measurements of size and speed.

    Raises:
        CheckpointError: there is no configuration of that name.
    """
    config = named_config(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return EdgeModel(config).eval()


def save_checkpoint(
    folder: Path, model: EdgeModel, decoder: PreTrainedModel, tokenizer: Any, dtype: torch.dtype
) -> Checkpoint:
    """Write a checkpoint, whole or not at all.

    Args:
        folder: where to; an existing checkpoint there is replaced, other files in it stay.
        model: the edge model.
        decoder: a transformers causal language model.
        tokenizer: its transformers tokenizer.
        dtype: in what precision the weights are stored.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    text = json.dumps(model.config.to_dict(), indent=2) + "\n"
    (temporary / CONFIG_FILE).write_text(text, "utf-8")
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, temporary / EDGE_FILE)
    copy.deepcopy(decoder).to(dtype).save_pretrained(temporary / DECODER_FOLDER)
    tokenizer.save_pretrained(temporary / DECODER_FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    # Only the checkpoint's own parts make way; the configuration goes first and comes back last,
    # so that a broken-off replacement is not taken for a checkpoint.
    for name in (CONFIG_FILE, EDGE_FILE, DECODER_FOLDER, CODEC_TABLES_FILE):
        _remove(folder / name)
    for name in (DECODER_FOLDER, EDGE_FILE, CONFIG_FILE):
        (temporary / name).rename(folder / name)
    temporary.rmdir()
    return open_checkpoint(folder)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fingerprint(config: ModelConfig, weights: Path) -> str:
    """16 hex digits over the configuration and the stored edge weights; see `digest`."""
    with safe_open(weights, "pt") as file:
        return digest(config, ((name, file.get_tensor(name)) for name in sorted(file.keys())))


def digest(config: ModelConfig, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """16 hex digits over a configuration and tensors, which come in order of name.

    SHA-256, cut to 64 bits, over the configuration as compact JSON with sorted keys (without name
    and languages, which change no feature), then for each tensor: its name, dtype and shape as one
    line of text, and its bytes.
    """
    shapes = {
        key: value for key, value in config.to_dict().items() if key not in ("name", "languages")
    }
    hashed = hashlib.sha256(json.dumps(shapes, sort_keys=True, separators=(",", ":")).encode())
    for name, tensor in tensors:
        hashed.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hashed.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:16]


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load weights whose names and shapes are exactly the model's.

    Raises:
        CheckpointError: tensors are missing, unexpected or misshapen; it lists them.
    """
    check_shapes(shapes_of(model.state_dict()), shapes_of(tensors))
    model.load_state_dict(tensors)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Each tensor's shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_shapes(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare names and shapes.

    Raises:
        CheckpointError: tensors are missing, unexpected or misshapen; it lists them.
    """
    wrong = [
        *(f"{name} is missing" for name in expected.keys() - found.keys()),
        *(f"{name} is unexpected" for name in found.keys() - expected.keys()),
        *(
            f"{name} has shape {found[name]} instead of {expected[name]}"
            for name in expected.keys() & found.keys()
            if found[name] != expected[name]
        ),
    ]
    if wrong:
        raise CheckpointError(
            f"The weights do not fit the configuration: {'; '.join(sorted(wrong))}.",
            "Use weights and config.json of one checkpoint.",
        )
