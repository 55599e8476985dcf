"""The projector in numpy, beside torch's."""

import numpy as np
import pytest
import torch

from cloud_vllm.service.projector import NumpyProjector
from esrt.model import Projector


@pytest.fixture
def projector() -> Projector:
    torch.manual_seed(5)
    projector = Projector(24, 40, 32)
    # Layer norm's own are 1 and 0, which would not show.
    torch.nn.init.normal_(projector.norm.weight)
    torch.nn.init.normal_(projector.norm.bias)
    return projector


@pytest.mark.parametrize("tokens", [1, 2, 80])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_it_is_what_torch_computes(projector: Projector, tokens: int, scale: float) -> None:
    features = (scale * np.random.default_rng(tokens).normal(size=(tokens, 24))).astype(np.float32)
    before = features.copy()
    with torch.inference_mode():
        expected = projector(torch.from_numpy(features)).numpy()
    found = NumpyProjector(projector)(features)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(features, before)


def test_what_overflows_is_not_finite_and_nothing_is_warned_of(projector: Projector) -> None:
    huge = np.full((3, 24), np.finfo(np.float32).max, np.float32)
    assert not np.isfinite(NumpyProjector(projector)(huge)).any()
