"""Profiles of operators, on a tiny model."""

import pytest

from benchmarks.encode.measures import EAGER, ET_INT8, ORT_INT8
from benchmarks.operators import profiles
from esrt.checkpoint import Checkpoint
from tests.export.helpers import Exporter


def test_every_runtime_reports_its_operators(lively: Checkpoint, artifacts: Exporter) -> None:
    folders = {kind: artifacts(kind, "int8").folder for kind in ("executorch", "onnx")}
    rows = profiles.rows("tiny", profiles.measure(lively, 2.0, folders, 1, 2))
    assert {row["backend"] for row in rows} == {EAGER, ET_INT8, ORT_INT8}
    # One encoder layer with 6 linear layers and one Q-Former layer with 10.
    linear = {
        backend: sum(
            row["calls"]
            for row in rows
            if row["backend"] == backend and row["group"] == "linear layers"
        )
        for backend in (EAGER, ET_INT8, ORT_INT8)
    }
    assert linear[EAGER] == linear[ET_INT8] == 16
    assert linear[ORT_INT8] >= 16  # ONNX Runtime quantizes inputs in separate operators
    for backend in (EAGER, ET_INT8, ORT_INT8):
        groups = {row["group"] for row in rows if row["backend"] == backend}
        assert {*profiles.GROUPS, profiles.OTHER} - groups <= {"softmax"}
        assert sum(row["ms"] for row in rows if row["backend"] == backend) > 0
    products = [row for row in rows if row["operator"].startswith("Batch Matrix Multiply (NC, F16")]
    assert [row["calls"] for row in products] == [6]


@pytest.mark.parametrize(
    ("operator", "group"),
    [
        ("Fully Connected (NC, QDU8, F32, QC8W) GEMM", "linear layers"),
        ("Fully Connected (NC, QD8, F32, QC8W) GEMM", "linear layers"),
        ("Fully Connected (NC, F32) GEMM", "norms and sums"),
        ("Convolution (NHWC, F32) IGEMM", "convolutions"),
        ("Convert (NC)", profiles.OTHER),
        ("DynamicQuantizeMatMul", "linear layers"),
        ("FusedMatMul", "attention's products"),
        ("SkipLayerNormalization", "norms and sums"),
        ("aten::addmm", "linear layers"),
        ("aten::bmm", "attention's products"),
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::matmul", profiles.OTHER),
    ],
)
def test_operators_have_their_group(operator: str, group: str) -> None:
    assert profiles.group(operator) == group
