"""The ONNX artifact: its graph as the file holds it, and the options of ONNX alone."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from esrt.bundled import CHECKPOINT, REPOSITORY
from esrt.checkpoint import Checkpoint, open_checkpoint, random_checkpoint
from esrt.manifest import Precision
from esrt.model import EdgeModel
from esrt.wire import Split
from export.backends import get_recipe
from export.backends.onnx import lower
from export.backends.onnx.runner import load_runner
from export.recipe import export
from tests.export.helpers import Exporter, cosines, expected, mel
from tests.tiny_checkpoint import TINY

RECIPE = get_recipe("onnx")
# TINY with the fixed number of queries of the released models.
PADDED = dataclasses.replace(
    TINY,
    encoder=dataclasses.replace(TINY.encoder, max_positions=100),
    q_former=dataclasses.replace(
        TINY.q_former, queries=5, stride=None, overlap=0, offset_bias=False
    ),
    padded=True,
    max_seconds=2.0,
)


def _constant_float_products(graph: onnx.GraphProto) -> list[str]:
    """Matrix products in floating point with a weight of the file.

    ONNX Runtime computes products of two dequantized inputs in int8.
    """
    floats = {
        tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    }
    floats |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    # Weights may be transposed on the way to the product.
    for node in graph.node:
        if node.op_type in ("Transpose", "Identity", "DequantizeLinear") and {*node.input} & floats:
            floats.add(node.output[0])
    dequantized = {
        output
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        for output in node.output
    }
    return [
        node.name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm")
        and {*node.input[:2]} & floats
        and not {*node.input[:2]} <= dequantized
    ]


def graph_of(folder: Path) -> onnx.GraphProto:
    return onnx.load(folder / "model.onnx").graph


def test_the_int8_graph_multiplies_integers(artifacts: Exporter) -> None:
    graph = graph_of(artifacts("onnx", "int8").folder)
    integer = [node for node in graph.node if node.op_type == "MatMulInteger"]
    # k and v of one input may be merged, hence at least.
    assert len(integer) >= 12
    assert _constant_float_products(graph) == []
    weights = {tensor.name: tensor for tensor in graph.initializer}
    assert {weights[node.input[1]].data_type for node in integer} == {onnx.TensorProto.UINT8}


def test_the_fp32_graph_does_not(artifacts: Exporter) -> None:
    graph = graph_of(artifacts("onnx", "fp32").folder)
    assert "MatMulInteger" not in {node.op_type for node in graph.node}
    assert len(_constant_float_products(graph)) >= 12


def test_int8_linear_weights_take_a_quarter(artifacts: Exporter) -> None:
    def bytes_of_matrices(form: str) -> int:
        graph = graph_of(artifacts("onnx", form).folder)
        return sum(len(t.raw_data) for t in graph.initializer if len(t.dims) == 2)

    positions = 200 * 32 * 4  # the table of positions stays in fp32
    ratio = (bytes_of_matrices("int8") - positions) / (bytes_of_matrices("fp32") - positions)
    assert 0.2 < ratio < 0.3


def test_fp16_weights_are_fp16(artifacts: Exporter) -> None:
    graph = graph_of(artifacts("onnx", "fp16").folder)
    large = [tensor for tensor in graph.initializer if len(tensor.dims) > 1]
    assert {tensor.data_type for tensor in large} == {onnx.TensorProto.FLOAT16}


def test_static_int8_quantizes_by_fixed_ranges(artifacts: Exporter) -> None:
    for form, floating in (("static", 0), ("kept", 1)):
        graph = graph_of(artifacts("onnx", form).folder)
        assert len(_constant_float_products(graph)) == floating
        assert "DynamicQuantizeLinear" not in {node.op_type for node in graph.node}


@pytest.mark.parametrize("form", ["fp32", "int8", "fixed"])
def test_the_manifest_describes_the_graphs_ends(form: str, artifacts: Exporter) -> None:
    artifact = artifacts("onnx", form)
    session = onnxruntime.InferenceSession(str(artifact.path), providers=["CPUExecutionProvider"])
    for specs, values in (
        (artifact.manifest.inputs, session.get_inputs()),
        (artifact.manifest.outputs, session.get_outputs()),
    ):
        (spec,), (value,) = specs, values
        assert spec.name == value.name
        assert spec.dtype == "float32"
        assert value.type == "tensor(float)"
        assert spec.shape == tuple(size if isinstance(size, int) else None for size in value.shape)


def test_padded_models_have_one_length(tmp_path: Path) -> None:
    checkpoint, out = random_checkpoint(PADDED), tmp_path / "artifact"
    manifest = export(RECIPE, checkpoint, out, Precision.FP32, Split.QFORMER).manifest
    assert manifest.inputs[0].shape == (1, 128, 200)
    assert manifest.outputs[0].shape == (1, 5, 24)
    assert manifest.front_end.padded_seconds == 2.0
    features = load_runner(out / manifest.entry)(mel(200))
    reference = expected(checkpoint.edge_model(), mel(200))
    np.testing.assert_allclose(features, reference, rtol=0, atol=1e-4)


def test_int8_reaches_the_layers_of_a_padded_model(tmp_path: Path) -> None:
    """A fixed length makes Gemm nodes of linear layers, and onnxruntime rewrites those first."""
    out = tmp_path / "padded"
    export(RECIPE, random_checkpoint(PADDED), out, Precision.INT8, Split.QFORMER)
    integer = [node for node in graph_of(out).node if node.op_type == "MatMulInteger"]
    # Six in the encoder's layer. In the Q-Former's, the layers that depend on the speech: k, v and
    # out of the second attention and two of the feed-forward. The inputs of five more are constant;
    # some versions of ONNX Runtime compute them at export, others when the graph is loaded.
    assert len(integer) in (11, 16)


@pytest.mark.parametrize("precision", Precision)
def test_weights_that_one_file_cannot_hold_lie_beside_it(
    lively: Checkpoint,
    model: EdgeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
) -> None:
    """As at full size: float weights pass protobuf's limit, fp16 and int8 weights do not."""
    monkeypatch.setattr(lower, "_ONE_FILE_BYTES", 1000)
    out = tmp_path / "large"
    manifest = export(RECIPE, lively, out, precision, Split.QFORMER).manifest
    weights = {"model.onnx.data"} if precision is Precision.FP32 else set()
    assert set(manifest.files) == {"model.onnx"} | weights
    assert {path.name for path in out.iterdir()} == {"model.onnx", "manifest.json"} | weights
    features = load_runner(out / manifest.entry)(mel(400))
    assert cosines(features, expected(model, mel(400))).min() > 0.99


def test_the_shipped_model_keeps_its_features_in_int8(tmp_path: Path) -> None:
    nano = open_checkpoint(CHECKPOINT)
    manifest = export(RECIPE, nano, tmp_path / "nano", Precision.INT8, Split.QFORMER).manifest
    assert manifest.fingerprint == nano.fingerprint
    assert manifest.parity["cosine_min"] > 0.97
    assert manifest.parity["cosine_mean"] > 0.99
    run = load_runner(tmp_path / "nano" / manifest.entry)
    assert run(mel(1200)).shape == (1, 150, 192)


def test_a_missing_checkpoint_ends_with_2_and_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "export" / "to_onnx.py")]
    done = subprocess.run(
        [*command, "--checkpoint", str(tmp_path / "nowhere"), "--out", str(tmp_path / "artifact")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "nowhere" in line
    assert list(tmp_path.iterdir()) == []
