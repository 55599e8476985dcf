"""``manifest.json``: description of an exported artifact, beside the artifact's files.

docs/manifest.md explains every field for readers in other languages.
"""

import hashlib
import json
from enum import StrEnum
from pathlib import Path

import msgspec

from esrt.errors import ArtifactError
from esrt.speech import SpeechSettings
from esrt.wire.codec import Split

MANIFEST_FILE = "manifest.json"
FORMAT = 2

_REMEDY = "Export it again: python -m export onnx (or executorch, coreml)."


class Precision(StrEnum):
    """Number format of the weights and the products of linear layers."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Activations(StrEnum):
    """Quantization of the inputs of int8 linear layers.

    Attributes:
        DYNAMIC: int8, by the range of each input.
        STATIC: int8, by ranges that were calibrated on speech.
        FLOAT: none; only the weights are int8.
    """

    DYNAMIC = "dynamic"
    STATIC = "static"
    FLOAT = "float"


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Input or output of a graph.

    Attributes:
        name: name in the graph.
        dtype: element type, always ``float32``.
        shape: sides; ``None`` is a free length.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class FrontEnd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters that turn a recording into the graph's input (`esrt.speech`, `esrt.features`).

    Attributes:
        sample_rate: Hz.
        n_fft: samples of a window of the Fourier transform.
        hop: samples between two windows.
        mel_bins: mel bins of a frame.
        frame_multiple: the number of frames is a multiple of this.
        padded_seconds: length that audio is padded or trimmed to; ``None`` encodes only what was
            spoken.
        max_seconds: longest speech of one packet.
        speech: search for the speech in a recording, and its level.
    """

    sample_rate: int
    n_fft: int
    hop: int
    mel_bins: int
    frame_multiple: int
    padded_seconds: float | None
    max_seconds: float
    speech: SpeechSettings

    @property
    def max_frames(self) -> int:
        """Mel frames of the longest input that the graph takes."""
        frames = round(self.max_seconds * self.sample_rate / self.hop)
        return frames // self.frame_multiple * self.frame_multiple


class Quantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Quantization of an int8 artifact.

    Attributes:
        activations: quantization of the inputs of linear layers.
        kept: names of the linear layers that stay in floating point.
        errors: root mean square of the output error that int8 causes in each layer, relative to
            the root mean square of the layer's output.
    """

    activations: Activations
    kept: tuple[str, ...]
    errors: dict[str, float]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Description of an artifact.

    Attributes:
        model: name of the model.
        fingerprint: hash of the configuration and the weights of encoder, Q-Former and projector; a
            gateway accepts features of its own fingerprint only.
        kind: format of the artifact; export and runtime check that they support it.
        precision: number format of the linear layers.
        split: end of the graph.
        feature_width: numbers in a feature token.
        max_tokens: feature tokens of the longest input.
        inputs: inputs of the graph.
        outputs: outputs of the graph.
        front_end: parameters that turn audio into the graph's input.
        languages: ISO 639-3 codes of the languages that the model was trained for.
        entry: name of the file to load.
        files: SHA-256 of each file, by its name.
        tools: version of each distribution that the export used.
        parity: figures of the comparison with torch, measured at export.
        created_from: name of the checkpoint's folder.
        format: version of this schema.
        lengths: input lengths of the graph, in seconds; audio is padded to the next length. Empty
            for a graph that takes every length up to the longest. May be missing from the file.
        quantization: quantization of an int8 artifact. May be missing from the file.
    """

    model: str
    fingerprint: str
    kind: str
    precision: Precision
    split: Split
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
    format: int
    lengths: tuple[float, ...] = ()
    quantization: Quantization | None = None

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into the artifact's folder."""
        data = msgspec.to_builtins(self)
        for name in ("lengths", "quantization"):
            if not data[name]:
                del data[name]
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        (folder / MANIFEST_FILE).write_text(text, "utf-8")


def read_manifest(folder: Path, *, verify: bool = True) -> Manifest:
    """Read and check an artifact's manifest.

    Args:
        folder: the artifact's folder.
        verify: also compare the SHA-256 of each file; see `verify_files`.

    Raises:
        ArtifactError: the manifest is missing or does not fit the schema, or a file is missing or
            differs from the exported one.
    """
    try:
        content = (folder / MANIFEST_FILE).read_bytes()
        manifest = msgspec.json.decode(content, type=Manifest)
    except OSError as error:
        raise _unreadable(folder, error) from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{folder / MANIFEST_FILE} is not valid: {error}.", _REMEDY) from error
    if manifest.format != FORMAT:
        raise ArtifactError(
            f"{folder / MANIFEST_FILE} has format {manifest.format}; this runtime reads {FORMAT}.",
            _REMEDY,
        )
    for name in (manifest.entry, *manifest.files):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(
                f"{folder / MANIFEST_FILE} names {name!r}, which is not in the folder.", _REMEDY
            )
    if verify:
        verify_files(folder, manifest)
    return manifest


def _unreadable(folder: Path, error: OSError) -> ArtifactError:
    """Error for a manifest that cannot be read: names what is missing, and artifacts nearby."""
    if not folder.exists():
        cause = f"There is no artifact at {folder}: no such folder."
    elif not folder.is_dir():
        cause = f"{folder} is a file; an artifact is a folder with a {MANIFEST_FILE}."
    elif (folder / MANIFEST_FILE).exists():
        cause = f"{folder / MANIFEST_FILE} cannot be read: {error.strerror}."
    else:
        cause = f"{folder} is not an artifact: it has no {MANIFEST_FILE}."
    nearby = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST_FILE}"))
    if nearby:
        return ArtifactError(cause, f"Name one of the artifacts in it: {', '.join(nearby)}.")
    return ArtifactError(cause, _REMEDY.replace("it again", "one"))


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare the SHA-256 of each file with the manifest.

    Raises:
        ArtifactError: a file is missing or differs from the exported one.
    """
    for name, expected in manifest.files.items():
        path = folder / name
        try:
            actual = sha256(path) if path.is_file() else None
        except OSError as error:
            raise ArtifactError(
                f"The artifact's file {path} cannot be read: {error.strerror}.", _REMEDY
            ) from error
        if actual is None:
            raise ArtifactError(f"The artifact's file {path} is missing.", _REMEDY)
        if actual != expected:
            raise ArtifactError(f"{path} is not the file that was exported.", _REMEDY)


def sha256(path: Path) -> str:
    """A file's SHA-256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
