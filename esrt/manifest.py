"""``manifest.json``, which lies beside every exported artifact and says all a runtime must know.

Standard library only: it is read on the device.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from esrt.errors import ArtifactError

MANIFEST_FILE = "manifest.json"
FORMAT = 1

Kind = Literal["onnx", "executorch", "coreml"]
Precision = Literal["fp32", "fp16", "int8"]
Activations = Literal["dynamic", "static", "float"]
SplitPoint = Literal["qformer", "adapter"]


@dataclass(frozen=True)
class TensorSpec:
    """A graph's input or output: name, element type, and shape; ``None`` is a free dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class FrontEnd:
    """How audio becomes the graph's input; the arithmetic is that of ``esrt.features``.

    ``frame_multiple``: the frames' count is a multiple of this. ``padded_seconds``: pad or trim
    to this length first; ``None`` encodes only what was spoken. ``max_seconds``: the longest
    speech for one packet.
    """

    sample_rate: int
    n_fft: int
    hop: int
    mel_bins: int
    frame_multiple: int
    padded_seconds: float | None
    max_seconds: float


@dataclass(frozen=True)
class Quantization:
    """What int8 means in an artifact.

    ``activations``: what the linear layers make of their inputs: int8 by the range of each input
    (``dynamic``), by ranges calibrated on speech (``static``), or nothing, only the weights being
    int8 (``float``). ``kept`` are the linear layers that stay in floating point. ``errors`` maps
    layers to the error of their output that int8 causes, relative to the output's root mean
    square.
    """

    activations: Activations
    kept: tuple[str, ...]
    errors: dict[str, float]


@dataclass(frozen=True)
class Manifest:
    """An artifact's description.

    ``fingerprint`` ties its features to one cloud decoder. ``files`` maps each file of the
    artifact to its SHA-256; ``entry`` is the one to load. ``languages`` are those that the
    checkpoint was trained for. ``parity`` holds the figures measured at export against torch, by
    name. ``created_from`` names the checkpoint. ``lengths`` are the seconds that the graph is made
    for, audio being padded to the next; empty for every length up to the longest.
    ``quantization`` says how an int8 artifact was quantized.

    Fields with a default of nothing may be missing from the file.
    """

    model: str
    fingerprint: str
    kind: Kind
    precision: Precision
    split: SplitPoint
    feature_width: int
    max_tokens: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    front_end: FrontEnd
    languages: tuple[str, ...]
    entry: str
    files: dict[str, str]
    tools: dict[str, str]
    parity: dict[str, float]
    created_from: str
    format: int = FORMAT
    lengths: tuple[float, ...] = ()
    quantization: Quantization | None = None

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into the artifact's folder."""
        data = dataclasses.asdict(self)
        for name in _OPTIONAL:
            if not data[name]:
                del data[name]
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        (folder / MANIFEST_FILE).write_text(text, "utf-8")


_OPTIONAL = frozenset({"lengths", "quantization"})


def read_manifest(folder: Path, *, verify: bool = True) -> Manifest:
    """Read and check an artifact's manifest.

    Args:
        folder: the artifact's folder.
        verify: also compare each file's SHA-256.

    Raises:
        ArtifactError: there is none, it does not fit the schema, or a file is missing or changed.
    """
    remedy = "Export it again: python export/to_onnx.py --out FOLDER."
    try:
        data = json.loads((folder / MANIFEST_FILE).read_text("utf-8"))
        manifest: Manifest = _parse(data, Manifest, "manifest")
    except OSError as error:
        raise ArtifactError(f"No artifact in {folder}: {error.strerror}.", remedy) from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise ArtifactError(f"{folder / MANIFEST_FILE} is not valid: {error}.", remedy) from error
    if manifest.format != FORMAT:
        raise ArtifactError(
            f"{folder / MANIFEST_FILE} has format {manifest.format}; this runtime reads {FORMAT}.",
            "Export it again with this version.",
        )
    for name in (manifest.entry, *manifest.files):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(
                f"{folder / MANIFEST_FILE} names {name!r}, which is not in the folder.", remedy
            )
    for name, expected in manifest.files.items() if verify else ():
        path = folder / name
        try:
            found = sha256(path) if path.is_file() else None
        except OSError as error:
            raise ArtifactError(
                f"The artifact's file {path} cannot be read: {error.strerror}.", remedy
            ) from error
        if found is None:
            raise ArtifactError(f"The artifact's file {path} is missing.", remedy)
        if found != expected:
            raise ArtifactError(f"{path} is not the file that was exported.", remedy)
    return manifest


def sha256(path: Path) -> str:
    """A file's SHA-256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(value: Any, kind: Any, where: str) -> Any:
    """Read a JSON value as a type of this module; ValueError says where it does not fit."""
    make: Callable[..., Any] = kind
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, dict) or not hints.keys() - _OPTIONAL <= value.keys() <= set(
            hints
        ):
            found = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"{where} must have the keys {sorted(hints)}, found {found}")
        return make(**{key: _parse(value[key], hints[key], f"{where}.{key}") for key in value})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} is {value!r}, not one of {list(arguments)}")
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_parse(item, arguments[0], f"{where}[]") for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: _parse(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    accepted = arguments if origin is UnionType else (kind,)
    if value is not None and dataclasses.is_dataclass(accepted[0]):
        return _parse(value, accepted[0], where)
    if float in accepted and type(value) is int:
        value = float(value)
    if type(value) not in accepted:
        raise ValueError(f"{where} is {value!r}, not of type {kind}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, not a number")
    return value
