"""ExecuTorch artifacts that run, and artifacts and inputs that are rejected."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn

from edge_runtime.artifact import open_artifact
from edge_runtime.audio import Audio
from edge_runtime.backends import ExecuTorchBackend
from edge_runtime.encoder import encode_speech
from edge_runtime.speech import Speech
from esrt.errors import ArtifactError
from esrt.manifest import Manifest
from tests.edge_runtime.helpers import STRIDE, WIDTH, describe, front_end, python, run, speech

MEL = np.random.default_rng(0).normal(size=(128, 5 * STRIDE)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(128, WIDTH)).astype(np.float32)
LONGEST = 400


class Pooling(nn.Module):
    """The mean of every 8 frames, multiplied by a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.from_numpy(WEIGHTS))

    def forward(self, mel: Tensor) -> Tensor:
        pooled = mel.view(1, 128, -1, STRIDE).mean(dim=3).transpose(1, 2)
        return pooled @ self.weights  # type: ignore[operator]


@pytest.fixture(scope="module")
def program() -> bytes:
    blocks = torch.export.Dim("blocks", min=2, max=LONGEST // STRIDE)
    exported = torch.export.export(
        Pooling(), (torch.zeros(1, 128, 160),), dynamic_shapes={"mel": {2: STRIDE * blocks}}
    )
    return to_edge_transform_and_lower(exported).to_executorch().buffer


@pytest.fixture
def folder(tmp_path: Path, program: bytes) -> Path:
    (tmp_path / "encoder.onnx").write_bytes(program)
    describe_program(tmp_path)
    return tmp_path


def describe_program(folder: Path, **changes: Any) -> Manifest:
    return describe(folder, **{"kind": "executorch", **changes})


def test_runs_the_program(folder: Path) -> None:
    backend = open_artifact(folder).backend(threads=1)
    assert isinstance(backend, ExecuTorchBackend)
    assert backend.manifest.kind == "executorch"
    features = backend.encode(MEL)
    assert features.dtype == np.float32
    expected = MEL.reshape(128, 5, STRIDE).mean(axis=2).T @ WEIGHTS
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_earlier_features_stay_when_more_is_encoded(folder: Path) -> None:
    backend = open_artifact(folder).backend(threads=1)
    first = backend.encode(MEL)
    kept = first.copy()
    backend.encode(2 * MEL)
    np.testing.assert_array_equal(first, kept)


def test_every_length_up_to_the_longest(folder: Path) -> None:
    backend = open_artifact(folder).backend(threads=1)
    for frames in (LONGEST, STRIDE, 3 * STRIDE):
        mel = np.ones((128, frames), np.float32)
        expected = np.tile(WEIGHTS.sum(axis=0), (frames // STRIDE, 1))
        np.testing.assert_allclose(backend.encode(mel), expected, rtol=1e-4)


def test_two_backends_in_one_process(folder: Path) -> None:
    first, second = (open_artifact(folder).backend(threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(first.encode(MEL), second.encode(MEL))


def test_audio_becomes_a_packet(folder: Path) -> None:
    encoded = encode_speech(
        Speech(speech(1.0), 0.0, Audio(speech(1.0))), open_artifact(folder).backend(threads=1)
    )
    assert (encoded.tokens, encoded.width) == (13, WIDTH)


def test_the_command_encodes_and_keeps_its_output_clean(folder: Path, utterance: Path) -> None:
    done = run("encode", utterance, "--artifact", folder, "--out", folder / "packet", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (folder / "packet").stat().st_size > 0


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"kind": "coreml"}, "'coreml'"),
        ({"inputs": ()}, "0 inputs"),
        ({"entry": "../encoder.onnx"}, "'../encoder.onnx'"),
        ({"files": {"encoder.onnx": "0" * 64}}, "not the file"),
        ({"front_end": front_end(max_seconds=5.0)}, "up to 496"),
    ],
)
def test_refuses_an_artifact(folder: Path, changes: dict[str, Any], word: str) -> None:
    describe_program(folder, **changes)
    with pytest.raises(ArtifactError, match=word.replace(".", r"\.")):
        open_artifact(folder).backend(threads=1)


@pytest.mark.parametrize("content", [b"", b"not a program" * 50, "cut", "flipped"])
def test_refuses_a_file_that_is_no_program(
    folder: Path, program: bytes, content: bytes | str
) -> None:
    if content == "cut":
        content = program[: len(program) // 2]
    elif content == "flipped":
        content = program[:8] + bytes(255 - byte for byte in program[8:200]) + program[200:]
    assert isinstance(content, bytes)
    (folder / "encoder.onnx").write_bytes(content)
    describe_program(folder)
    with pytest.raises(ArtifactError, match="cannot load"):
        open_artifact(folder).backend(threads=1)


@pytest.mark.parametrize("changes", [{"feature_width": WIDTH + 1}, {"max_tokens": 4}])
def test_refuses_features_that_the_manifest_does_not_declare(
    folder: Path, changes: dict[str, Any]
) -> None:
    describe_program(folder, **changes)
    with pytest.raises(ArtifactError, match=rf"\(1, 5, {WIDTH}\)"):
        open_artifact(folder).backend(threads=1).encode(MEL)


@pytest.mark.parametrize(
    "mel",
    [
        MEL[:, :-1],
        MEL[:, :0],
        MEL[:-1],
        MEL.astype(np.float64),
        np.zeros((128, LONGEST + STRIDE), np.float32),
    ],
    ids=["broken block", "empty", "bins", "float64", "too long"],
)
def test_refuses_an_input_that_the_program_cannot_take(folder: Path, mel: Any) -> None:
    with pytest.raises(ArtifactError, match="failed on an input"):
        open_artifact(folder).backend(threads=1).encode(mel)


def test_without_executorch_the_error_says_so(folder: Path) -> None:
    code = (
        "import sys; sys.modules['executorch'] = None\n"
        "from pathlib import Path\nfrom edge_runtime.artifact import open_artifact\n"
        f"open_artifact(Path({str(folder)!r})).backend(threads=1)"
    )
    done = python("-c", code)
    assert "ArtifactError: ExecuTorch artifacts need executorch and torch" in done.stderr
