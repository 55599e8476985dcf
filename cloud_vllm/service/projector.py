"""The projector as the gateway runs it."""

import numpy as np

from esrt.arrays import Float32Array
from esrt.model import Projector


class NumpyProjector:
    """`esrt.model.Projector` in numpy: for the few rows of a packet torch's calls cost more.

    Args:
        projector: whose weights are taken.
    """

    def __init__(self, projector: Projector) -> None:
        linear1, linear2, norm = projector.linear1, projector.linear2, projector.norm
        self._weight1, self._weight2 = (one.weight.detach().numpy().T for one in (linear1, linear2))
        self._bias1, self._bias2, self._gain, self._shift = (
            one.detach().numpy() for one in (linear1.bias, linear2.bias, norm.weight, norm.bias)
        )
        self._eps = np.float32(norm.eps)

    @property
    def multiplications(self) -> int:
        """For each token."""
        return self._weight1.size + self._weight2.size

    def __call__(self, features: Float32Array) -> Float32Array:
        """(tokens, Q-Former width) to (tokens, decoder width); not finite where that overflows."""
        with np.errstate(over="ignore", invalid="ignore"):
            inner = features @ self._weight1
            inner += self._bias1
            rows: Float32Array = np.maximum(inner, 0, out=inner) @ self._weight2
            rows += self._bias2
            rows -= rows.mean(axis=1, keepdims=True)
            variance = np.einsum("ij,ij->i", rows, rows)[:, np.newaxis] / np.float32(rows.shape[1])
            rows /= np.sqrt(variance + self._eps)
            rows *= self._gain
            rows += self._shift
        return rows
