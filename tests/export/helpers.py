"""Forms of artifact that the tests export, inputs, torch's answers, and comparisons."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from esrt.arrays import Float32Array
from esrt.manifest import Activations, Manifest, Precision, read_manifest, sha256
from esrt.model import EdgeModel
from esrt.wire import Split
from export import backends
from export.backends.xnnpack.lower import Partitioner
from export.graph_io import Runner
from export.inspection import Inspection
from export.recipe import ExportRecipe

# Smallest content that marks a folder as an artifact.
MANIFEST = b'{"fingerprint": "", "entry": "", "format": 1}'
KINDS = backends.kinds()
# The longest is the model's longest input, the shortest a single block. Graphs are traced at 392
# (ONNX, ExecuTorch) or 400 frames (Core ML).
LENGTHS = (8, 16, 24, 152, 168, 392, 400)


@dataclass(frozen=True)
class Form:
    """Settings of an export of the lively checkpoint, and how close it must be to torch.

    Attributes:
        kept: end of the name of a linear layer that is declared sensitive to int8.
        frames: inputs to compare.
        cosine: smallest cosine similarity with torch's features.
        error: largest error.
        least_error: the largest error must exceed this, or the precision is not what it should be.
    """

    precision: Precision
    activations: Activations | None = None
    split: Split = Split.QFORMER
    seconds: tuple[float, ...] = ()
    kept: str | None = None
    frames: tuple[int, ...] = LENGTHS
    cosine: float = 0.999999
    error: float = 1e-4
    least_error: float = 0.0


FORMS = {
    "fp32": Form(Precision.FP32),
    "fp16": Form(Precision.FP16, cosine=0.9999, error=0.05, least_error=1e-4),
    "int8": Form(Precision.INT8, cosine=0.995, error=0.5, least_error=1e-3),
    "static": Form(Precision.INT8, Activations.STATIC, cosine=0.995, error=0.5, least_error=1e-3),
    "kept": Form(
        *(Precision.INT8, Activations.STATIC),
        kept="encoder.layers.0.fc2",
        cosine=0.995,
        error=0.5,
        least_error=1e-3,
    ),
    "fixed": Form(Precision.FP32, split=Split.ADAPTER, seconds=(1.5,), frames=(152,)),
    "several": Form(Precision.FP32, seconds=(3, 1), frames=(104, 304)),
}


@dataclass(frozen=True)
class Artifact:
    """An exported artifact; ``report`` holds what the command or the backend reported."""

    folder: Path
    recipe: ExportRecipe
    form: Form
    report: str

    @cached_property
    def manifest(self) -> Manifest:
        return read_manifest(self.folder)

    @property
    def path(self) -> Path:
        return self.folder / self.manifest.entry

    @cached_property
    def run(self) -> Runner:
        return self.recipe.load_runner(self.path)

    def inspect(self) -> Inspection:
        frames = self.manifest.front_end.max_frames
        return self.recipe.inspect(self.path, self.manifest, mel(frames)[0])


# Returns the artifact of a kind and a form; see the fixture ``artifacts``.
Exporter = Callable[[str, str], Artifact]


def relabel(folder: Path, **changes: Any) -> None:
    """Write an artifact's manifest again, with changes and the files' true hashes."""
    manifest = read_manifest(folder, verify=False)
    files = {name: sha256(folder / name) for name in manifest.files}
    msgspec.structs.replace(manifest, files=files, **changes).write(folder)


def mel(frames: int, seed: int = 0) -> Float32Array:
    """Noise in the range of log-mels, (1, 128, frames)."""
    random = np.random.default_rng((frames, seed))
    return (0.5 * random.standard_normal((1, 128, frames))).astype(np.float32)


@torch.inference_mode()
def expected(model: EdgeModel, values: Float32Array, split: Split = Split.QFORMER) -> Float32Array:
    """Torch's features."""
    graph = model.features if split is Split.QFORMER else model
    return np.asarray(graph(torch.from_numpy(values)).numpy())


def cosines(a: Float32Array, b: Float32Array) -> Float32Array:
    return np.asarray((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))


def all_but_linear() -> Partitioner:
    """XNNPACK's partitioner, changed to leave linear layers to portable kernels."""
    partitioner = Partitioner()
    for name in ("linear.default", "addmm.default"):
        del partitioner.target_partitioner_configs[name]
    return partitioner
