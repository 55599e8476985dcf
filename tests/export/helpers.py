"""What the tests of all exports share: inputs, torch's answer to them, and the comparison."""

import numpy as np
import torch

from esrt.arrays import Float32Array
from esrt.model import EdgeModel
from export.backends.xnnpack.lower import Partitioner

# As much as shows a folder to be an artifact.
MANIFEST = b'{"fingerprint": "", "entry": "", "format": 1}'


def mel(frames: int, seed: int = 0) -> Float32Array:
    """Something in the range of log-mels."""
    random = np.random.default_rng((frames, seed))
    return (0.5 * random.standard_normal((1, 128, frames))).astype(np.float32)


@torch.inference_mode()
def expected(model: EdgeModel, values: Float32Array) -> Float32Array:
    return np.asarray(model.features(torch.from_numpy(values)).numpy())


def cosines(a: Float32Array, b: Float32Array) -> Float32Array:
    return np.asarray((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))


def all_but_linear() -> Partitioner:
    """In the place of XNNPACK's partitioner: leaves linear layers to portable kernels."""
    partitioner = Partitioner()
    for name in ("linear.default", "addmm.default"):
        del partitioner.target_partitioner_configs[name]
    return partitioner
