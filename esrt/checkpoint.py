"""Checkpoints on disk, and the fingerprint that ties a phone's artifact to the cloud's decoder.

A checkpoint is a folder with these parts:

- ``config.json``: the model's configuration,
- ``edge.safetensors``: weights of encoder, Q-Former and projector; without the encoder if the
  configuration names published weights of it (`esrt.pretrained_encoder`),
- ``decoder/``: a Gemma 3 causal language model with its tokenizer, in transformers' format,
- ``codec.safetensors``: tables of the transform codecs; may be missing,
- ``confidence.json``: threshold of the confidence, by the model's evaluation; may be missing.
"""

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from esrt.config import ModelConfig
from esrt.errors import CheckpointError
from esrt.fingerprint import digest, tensors_sha256
from esrt.model import EdgeModel, Projector
from esrt.pretrained_encoder import encoder_tensors
from esrt.wire import CODEC_TABLES_FILE, CodecTables, read_codec_tables

CONFIG_FILE = "config.json"
EDGE_FILE = "edge.safetensors"
DECODER_FOLDER = "decoder"
CONFIDENCE_FILE = "confidence.json"
_ENCODER = "encoder."


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration has been read; weights load on demand."""

    folder: Path
    config: ModelConfig
    fingerprint: str
    # Mean log-probability below which an answer is uncertain; None without an evaluation.
    confidence_threshold: float | None = field(default=None, kw_only=True)

    @property
    def decoder(self) -> Path:
        """Folder of the decoder."""
        return self.folder / DECODER_FOLDER

    def edge_model(self) -> EdgeModel:
        """Encoder, Q-Former and projector in float32, in evaluation mode.

        Raises:
            CheckpointError: tensors are missing, unexpected or misshapen, or the published weights
                of the encoder are missing or damaged.
        """
        model = EdgeModel(self.config)
        tensors = load_file(self.folder / EDGE_FILE)
        if self.config.encoder_weights is not None:
            check_shapes(shapes_of(_trained(model)), shapes_of(tensors))
            published = encoder_tensors(self.config.encoder_weights)
            tensors |= {f"{_ENCODER}{name}": tensor for name, tensor in published.items()}
        load_strictly(model, tensors)
        return model.eval()

    def projector(self) -> Projector:
        """The projector alone, for the cloud, which receives ``qformer`` features.

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
        """Tables of the transform codecs; ``None`` if the checkpoint has none.

        Raises:
            CheckpointError: the file is damaged, or was made for other weights.
        """
        path = self.folder / CODEC_TABLES_FILE
        return read_codec_tables(path, self.fingerprint) if path.is_file() else None


@dataclass(frozen=True)
class RandomCheckpoint(Checkpoint):
    """A configuration with random weights, fixed by the seed; it has no files and no decoder."""

    seed: int

    def edge_model(self) -> EdgeModel:
        """Encoder, Q-Former and projector in float32, in evaluation mode."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return EdgeModel(self.config).eval()


def random_checkpoint(config: ModelConfig, seed: int = 0) -> RandomCheckpoint:
    """Random weights for a configuration, for tests and measurements of size and speed."""
    fingerprint = digest(config, [("random", torch.tensor([seed]))])
    return RandomCheckpoint(Path(f"random:{config.name}"), config, fingerprint, seed)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's configuration and compute its fingerprint.

    Raises:
        CheckpointError: the folder is not a checkpoint, or a file in it is damaged.
    """
    remedy = "Name a folder with config.json, edge.safetensors and decoder/, like models/esrt-nano."
    try:
        config = ModelConfig.from_dict(json.loads((folder / CONFIG_FILE).read_text("utf-8")))
        (folder / DECODER_FOLDER / "config.json").stat()
        digested = fingerprint(config, folder / EDGE_FILE)
        return Checkpoint(
            folder,
            config,
            digested,
            confidence_threshold=_confidence_threshold(folder, digested),
        )
    except OSError as error:
        reason = error.strerror or error  # safetensors' errors have no strerror
        raise CheckpointError(f"No checkpoint in {folder}: {reason}.", remedy) from error
    except (ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"The checkpoint in {folder} is damaged: {error}.", remedy) from error


def _confidence_threshold(folder: Path, fingerprint: str) -> float | None:
    """The threshold in `CONFIDENCE_FILE`; ``None`` without the file."""
    path = folder / CONFIDENCE_FILE
    if not path.is_file():
        return None
    remedy = "Make it again: python -m benchmarks.confidence, or delete it."
    try:
        data = json.loads(path.read_text("utf-8"))
        threshold = float(data["threshold"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}.", remedy) from error
    if data.get("fingerprint") != fingerprint:
        raise CheckpointError(f"{path} was made for other weights.", remedy)
    return threshold


def save_checkpoint(
    folder: Path, model: EdgeModel, decoder: PreTrainedModel, tokenizer: Any, dtype: torch.dtype
) -> Checkpoint:
    """Write a checkpoint; an error leaves no incomplete checkpoint.

    Args:
        folder: the folder to write. A checkpoint in it is replaced; other files in it stay.
        model: the edge model.
        decoder: a transformers causal language model.
        tokenizer: the decoder's transformers tokenizer.
        dtype: element type of the stored weights.

    Raises:
        CheckpointError: the model's encoder was changed, although its configuration names published
            weights.
    """
    weights = model.config.encoder_weights
    if weights is not None and tensors_sha256(model.encoder.state_dict()) != weights.sha256:
        raise CheckpointError(
            f"The encoder was changed, but the configuration names the weights of {weights.name}.",
            "Keep the encoder's weights, or use a configuration without encoder_weights.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".checkpoint.", dir=folder) as name:
        partial = Path(name)
        text = json.dumps(model.config.to_dict(), indent=2) + "\n"
        (partial / CONFIG_FILE).write_text(text, "utf-8")
        tensors = {key: tensor.to(dtype).contiguous() for key, tensor in _trained(model).items()}
        save_file(tensors, partial / EDGE_FILE)
        copy.deepcopy(decoder).to(dtype).save_pretrained(partial / DECODER_FOLDER)
        tokenizer.save_pretrained(partial / DECODER_FOLDER)
        # The configuration is removed first and renamed last: an interrupted replacement leaves a
        # folder that is not a checkpoint.
        for part in (CONFIG_FILE, EDGE_FILE, DECODER_FOLDER, CODEC_TABLES_FILE):
            _remove(folder / part)
        for part in (DECODER_FOLDER, EDGE_FILE, CONFIG_FILE):
            (partial / part).rename(folder / part)
    return open_checkpoint(folder)


def _trained(model: EdgeModel) -> dict[str, Tensor]:
    """Tensors that a checkpoint's file contains: all but published weights of the encoder."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if model.config.encoder_weights is None or not name.startswith(_ENCODER)
    }


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fingerprint(config: ModelConfig, weights: Path) -> str:
    """Fingerprint of a configuration and a file of edge weights (`esrt.fingerprint.digest`)."""
    with safe_open(weights, "pt") as file:
        return digest(config, ((name, file.get_tensor(name)) for name in sorted(file.keys())))


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load weights whose names and shapes have to equal the model's.

    Raises:
        CheckpointError: tensors are missing, unexpected or misshapen; the message lists them.
    """
    check_shapes(shapes_of(model.state_dict()), shapes_of(tensors))
    model.load_state_dict(tensors)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_shapes(
    expected: Mapping[str, tuple[int, ...]], actual: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare names and shapes of tensors.

    Raises:
        CheckpointError: tensors are missing, unexpected or misshapen; the message lists them.
    """
    wrong = [
        *(f"{name} is missing" for name in expected.keys() - actual.keys()),
        *(f"{name} is unexpected" for name in actual.keys() - expected.keys()),
        *(
            f"{name} has shape {actual[name]} instead of {expected[name]}"
            for name in expected.keys() & actual.keys()
            if actual[name] != expected[name]
        ),
    ]
    if wrong:
        raise CheckpointError(
            f"The weights do not fit the configuration: {'; '.join(sorted(wrong))}.",
            "Use weights and config.json of one checkpoint.",
        )
