"""ONNX artifacts that run, and artifacts that are rejected."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.artifact import open_artifact
from edge_runtime.backends import OnnxBackend
from esrt.errors import ArtifactError
from esrt.manifest import TensorSpec
from tests.edge_runtime.helpers import STRIDE, WIDTH, describe, front_end, tiny_graph

MEL = np.random.default_rng(0).normal(size=(128, 5 * STRIDE)).astype(np.float32)


def test_runs_the_graph(tmp_path: Path) -> None:
    weights = tiny_graph(tmp_path / "encoder.onnx")
    manifest = describe(tmp_path)
    backend = open_artifact(tmp_path).backend(threads=1)
    assert isinstance(backend, OnnxBackend)
    assert backend.manifest == manifest
    features = backend.encode(MEL)
    assert features.dtype == np.float32
    assert features.shape == (5, WIDTH)
    expected = MEL.reshape(128, 5, STRIDE).mean(axis=2).T @ weights
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_names_come_from_the_manifest(tmp_path: Path) -> None:
    tiny_graph(tmp_path / "encoder.onnx", output="states_of_speech")
    describe(tmp_path, outputs=(TensorSpec("states_of_speech", "float32", (1, None, WIDTH)),))
    assert open_artifact(tmp_path).backend(threads=1).encode(MEL).shape == (5, WIDTH)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"kind": "executorch"}, "ExecuTorch cannot load"),
        ({"kind": "coreml"}, "'coreml'"),
        ({"kind": "tflite"}, "'tflite'"),
        ({"inputs": (TensorSpec("audio", "float32", (1, None)),)}, "'audio'"),
        ({"outputs": (TensorSpec("logits", "float32", (1, None)),)}, "'logits'"),
        ({"inputs": ()}, "0 inputs"),
        ({"entry": "../encoder.onnx"}, r"'\.\./encoder\.onnx'"),
        ({"front_end": front_end(hop=200)}, "200"),
        ({"front_end": front_end(frame_multiple=0)}, "front end"),
        ({"front_end": front_end(mel_bins=100)}, "100 mel bins; .* 80 or 128"),
        ({"files": {"encoder.onnx": "0" * 64}}, "not the file"),
        ({"files": {"encoder.onnx": "0" * 64, "other.onnx": "0" * 64}}, r"encoder\.onnx"),
    ],
)
def test_refuses_an_artifact(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    tiny_graph(tmp_path / "encoder.onnx")
    describe(tmp_path, **changes)
    with pytest.raises(ArtifactError, match=word):
        open_artifact(tmp_path).backend(threads=1)


def test_refuses_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        open_artifact(tmp_path).backend()


def test_refuses_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"not a graph" * 50)
    describe(tmp_path)
    with pytest.raises(ArtifactError, match="cannot load"):
        open_artifact(tmp_path).backend(threads=1)


@pytest.mark.parametrize("changes", [{"feature_width": WIDTH + 1}, {"max_tokens": 4}])
def test_refuses_features_that_the_manifest_does_not_declare(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    tiny_graph(tmp_path / "encoder.onnx")
    describe(tmp_path, **changes)
    with pytest.raises(ArtifactError, match=rf"\(1, 5, {WIDTH}\)"):
        open_artifact(tmp_path).backend(threads=1).encode(MEL)


def test_refuses_an_input_that_the_graph_cannot_take(artifact: Path) -> None:
    with pytest.raises(ArtifactError, match="failed on an input"):
        open_artifact(artifact).backend(threads=1).encode(MEL[:, :-1])
