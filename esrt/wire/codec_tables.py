"""Reader of ``codec.safetensors``, the tables of a checkpoint's transform codecs."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from esrt.errors import CheckpointError
from esrt.wire.codec import Codec, Split
from esrt.wire.transform_codec import FREQUENCY_BITS, ID_BYTES, CodecTables, TransformTables

CODEC_TABLES_FILE = "codec.safetensors"
MAX_CLASSES = 64

# Element type and number of axes of each tensor of one codec.
_TENSORS = {
    "mean": ("f4", 1),
    "analysis": ("f4", 2),
    "synthesis": ("f4", 2),
    "classes": ("u1", 2),
    "frequencies": ("u2", 2),
}


def read_codec_tables(path: Path, fingerprint: str) -> CodecTables:
    """Read ``codec.safetensors``.

    Args:
        path: the file.
        fingerprint: fingerprint of the model that the tables have to belong to.

    Raises:
        CheckpointError: the file is damaged, its tensors do not fit together, or it belongs to a
            model of another fingerprint.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("fingerprint") != fingerprint:
            raise ValueError(
                f"the tables belong to model {metadata.get('fingerprint')}, not {fingerprint}"
            )
        split = Split(metadata.get("split", ""))  # type: ignore[call-arg]  # by its value
        names = {name.partition(".")[0] for name in tensors}
        by_codec = {Codec(name): _tables_of(name, tensors) for name in names}  # type: ignore[call-arg]
        identity = hashlib.sha256(path.read_bytes()).digest()[:ID_BYTES]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"The codec tables in {path} cannot be used: {error}.",
            "Make them again: python -m training.codec.",
        ) from error
    return CodecTables(split, by_codec, identity)


def _tables_of(name: str, tensors: Mapping[str, npt.NDArray[np.generic]]) -> TransformTables:
    """Tables of one codec.

    Raises:
        ValueError: a tensor is invalid, or the tensors do not fit together.
        KeyError: a tensor is missing.
    """
    arrays = {key: tensors[f"{name}.{key}"] for key in _TENSORS}
    for key, (dtype, axes) in _TENSORS.items():
        array = arrays[key]
        if array.dtype != dtype or (dtype == "f4" and not np.isfinite(array).all()):
            raise ValueError(f"{name}.{key} does not consist of finite {dtype}")
        if array.ndim != axes:
            raise ValueError(f"{name}.{key} has {array.ndim} axes, not {axes}")
    tables = TransformTables(**arrays)  # type: ignore[arg-type]
    (block, count), counts = tables.classes.shape, tables.frequencies.astype(np.int64)
    if not tables.analysis.shape == tables.synthesis.shape == (count, tables.width):
        raise ValueError(f"the shapes of {name}'s analysis, synthesis and classes do not fit")
    if block == 0 or not 0 < len(counts) <= MAX_CLASSES or tables.classes.max() > len(counts):
        raise ValueError(f"{name}'s classes have no tables")
    limits = tables.limits[1:, np.newaxis]
    in_range = np.abs(np.arange(counts.shape[1]) - counts.shape[1] // 2) <= limits
    if counts.shape[1] % 2 == 0 or (in_range != (counts > 0)).any():
        raise ValueError(f"{name}'s frequencies do not cover a symmetric range around 0")
    if (counts.sum(axis=1) != 1 << FREQUENCY_BITS).any() or not limits.all():
        raise ValueError(f"{name}'s frequencies do not sum to {1 << FREQUENCY_BITS}")
    return tables
