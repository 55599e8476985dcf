"""The comparison with torch: bounds that can fail."""

import pytest

from esrt.errors import CheckFailed
from esrt.manifest import Precision
from esrt.model import EdgeModel
from esrt.wire import Split
from export import parity
from export.tracing import DeviceGraph
from tests.export.helpers import Exporter


@pytest.mark.parametrize(
    "figures",
    [
        {"cosine_min": 0.9, "error_max": 0.0},
        {"cosine_min": 1.0, "error_max": 2.0},
        {"cosine_min": float("nan"), "error_max": 0.0},
        {"cosine_min": 1.0, "error_max": float("nan")},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", Precision)
def test_figures_out_of_bounds_fail(figures: dict[str, float], precision: Precision) -> None:
    with pytest.raises(CheckFailed):
        parity.check(figures, parity.BOUNDS[precision])


def test_a_graph_of_another_model_fails_parity(artifacts: Exporter, model: EdgeModel) -> None:
    """The bounds find weights that differ slightly."""
    other = EdgeModel(model.config)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights["encoder.layers.0.fc1.weight"] *= 1.05
    other.load_state_dict(weights)
    figures = parity.measure(DeviceGraph(other, Split.QFORMER), artifacts("onnx", "fp32").run)
    with pytest.raises(CheckFailed):
        parity.check(figures, parity.BOUNDS[Precision.FP32])
