"""Released checkpoints: Hugging Face repositories such as ``yxdu/ESRT-4B``, read by tensor name.

The repositories contain their own loader code, which never runs here: only safetensors files are
read, and every tensor must belong to the model. The tensors' names begin with

- ``encoder.``: a Whisper encoder,
- ``q_former.``: ``query``, and ``qformer``, a `Blip2QFormerModel`,
- ``mlp.``: the projector, ``linear1``, ``linear2`` and ``norm``,
- ``llm.``: a Gemma 3 causal language model; missing if the decoder is published separately.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from esrt.checkpoint import Checkpoint, check_shapes, load_strictly, shapes_of
from esrt.config import CONFIGS, EncoderConfig, ModelConfig, QFormerConfig
from esrt.errors import CheckpointError
from esrt.fingerprint import digest
from esrt.languages import LANGUAGES
from esrt.model import EdgeModel

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
EDGE_PARTS = ("encoder.", "q_former.", "mlp.")
DECODER_PART = "llm."

# Width of an attention head in every Whisper model, and in BERT, whose sizes Q-Formers have. It is
# the only number of the configuration that does not follow from the tensors' shapes.
HEAD_WIDTH = 64
# Encoder positions per second: 100 mel frames, halved by the second convolution.
POSITIONS_PER_SECOND = 50

Shapes = dict[str, tuple[int, ...]]

_REMEDY = (
    "Name a folder with model.safetensors, or with its shards and model.safetensors.index.json."
)


@dataclass(frozen=True)
class HfCheckpoint(Checkpoint):
    """A released checkpoint whose tensor names and shapes are valid; weights load on demand.

    Attributes:
        files: file of each tensor, by the tensor's name.
    """

    files: Mapping[str, Path]

    def edge_model(self) -> EdgeModel:
        """Encoder, Q-Former and projector in float32, in evaluation mode."""
        with torch.device("meta"):
            model = EdgeModel(self.config)
        model.to_empty(device="cpu")
        load_strictly(model, dict(self._tensors(*EDGE_PARTS)))
        return model.eval()

    def _tensors(self, *parts: str) -> Iterator[tuple[str, Tensor]]:
        return _read(self.files, parts, lambda file, name: file.get_tensor(name))


def is_hf_checkpoint(folder: Path) -> bool:
    """Whether a folder has the files of a released checkpoint."""
    return (folder / WEIGHTS_FILE).is_file() or (folder / INDEX_FILE).is_file()


def open_hf_checkpoint(folder: Path) -> HfCheckpoint:
    """Derive and check the configuration from the tensors' shapes, and compute the fingerprint.

    Raises:
        CheckpointError: the folder has no safetensors file, a file is damaged, or tensors are
            missing, unexpected or misshapen.
    """
    try:
        files = _files(folder)
        shapes: Shapes = dict(
            _read(files, ("",), lambda file, name: tuple(file.get_slice(name).get_shape()))
        )
        config = _config(shapes, folder.resolve().name)
        _check(config, shapes)
        edge = _read(files, EDGE_PARTS, lambda file, name: file.get_tensor(name))
        return HfCheckpoint(folder, config, digest(config, edge), files)
    except OSError as error:
        reason = error.strerror or error  # safetensors' errors have no strerror
        raise CheckpointError(f"No checkpoint in {folder}: {reason}.", _REMEDY) from error
    except (ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(
            f"The checkpoint in {folder} is damaged: {error}.", _REMEDY
        ) from error


def _files(folder: Path) -> dict[str, Path]:
    """File of each tensor, sorted by the tensors' names."""
    index = folder / INDEX_FILE
    if not index.is_file():
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            return dict.fromkeys(sorted(file.keys()), folder / WEIGHTS_FILE)
    content = json.loads(index.read_text("utf-8"))
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ValueError(f"{INDEX_FILE} has no weight_map from tensors to files")
    outside = sorted({name for name in listed.values() if Path(name).name != name})
    if outside:
        raise ValueError(f"{INDEX_FILE} names files outside of the folder: {', '.join(outside)}")
    actual: dict[str, str] = {}
    for shard in sorted(set(listed.values())):
        with safe_open(folder / shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name in actual:
                    raise ValueError(f"{name} is in {actual[name]} and in {shard}")
                actual[name] = shard
    wrong = sorted(name for name in listed.keys() & actual.keys() if listed[name] != actual[name])
    if wrong:
        raise ValueError(f"{INDEX_FILE} names the wrong files of {', '.join(wrong)}")
    check_shapes(dict.fromkeys(listed, ()), dict.fromkeys(actual, ()))
    return {name: folder / actual[name] for name in sorted(actual)}


def _read(
    files: Mapping[str, Path], parts: tuple[str, ...], read: Callable[[Any, str], Any]
) -> Iterator[tuple[str, Any]]:
    """Name and result of ``read`` for each tensor of some parts, sorted by name."""
    with ExitStack() as stack:
        opened: dict[Path, Any] = {}
        for name, path in files.items():
            if name.startswith(parts):
                if path not in opened:
                    opened[path] = stack.enter_context(safe_open(path, "pt"))
                yield name, read(opened[path], name)


def _config(shapes: Shapes, name: str) -> ModelConfig:
    """The configuration of a model with these tensors."""
    dimensions = {
        "encoder.conv1.weight": 3,
        "encoder.embed_positions.weight": 2,
        "encoder.layers.0.fc1.weight": 2,
        "q_former.query": 3,
        "q_former.qformer.encoder.layer.0.intermediate_query.dense.weight": 2,
        "mlp.linear1.weight": 2,
        "mlp.linear2.weight": 2,
    }
    wrong = [
        f"{tensor} is missing"
        if tensor not in shapes
        else f"{tensor} has shape {shapes[tensor]} instead of {count} dimensions"
        for tensor, count in dimensions.items()
        if len(shapes.get(tensor, ())) != count
    ]
    if wrong:
        raise CheckpointError(
            f"The tensors are not those of a released checkpoint: {'; '.join(wrong)}.", _REMEDY
        )
    convolution, positions, inner, query, q_inner, linear1, linear2 = (
        shapes[tensor] for tensor in dimensions
    )
    width, q_width = convolution[0], query[2]
    encoder = EncoderConfig(
        width=width,
        layers=_count(shapes, r"encoder\.layers\.(\d+)\."),
        heads=max(1, width // HEAD_WIDTH),
        inner_width=inner[0],
        mel_bins=convolution[1],
        max_positions=positions[0],
    )
    q_former = QFormerConfig(
        width=q_width,
        layers=_count(shapes, r"q_former\.qformer\.encoder\.layer\.(\d+)\."),
        heads=max(1, q_width // HEAD_WIDTH),
        inner_width=q_inner[0],
        queries=query[1],
    )
    seconds = positions[0] / POSITIONS_PER_SECOND
    languages = tuple(LANGUAGES)
    config = ModelConfig(name, encoder, q_former, linear2[0], linear1[0], True, seconds, languages)
    named = (c for c in CONFIGS.values() if {**c.to_dict(), "name": name} == config.to_dict())
    return next(named, config)


def _count(shapes: Shapes, pattern: str) -> int:
    """Number of distinct layers in the names.

    A gap in the numbers is reported later as missing and unexpected tensors.
    """
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def _check(config: ModelConfig, shapes: Shapes) -> None:
    with torch.device("meta"):
        expected = shapes_of(EdgeModel(config).state_dict())
    check_shapes(
        expected, {name: s for name, s in shapes.items() if not name.startswith(DECODER_PART)}
    )
    embeddings = f"{DECODER_PART}model.embed_tokens.weight"
    if embeddings in shapes and shapes[embeddings][-1] != config.decoder_width:
        raise CheckpointError(
            f"{embeddings} has shape {shapes[embeddings]}, but mlp.linear2 ends in"
            f" {config.decoder_width}.",
            "Use weights of one checkpoint.",
        )
