"""The doctor, on sound artifacts and on such as were spoilt on purpose."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from esrt.bundled import CHECKPOINT, REPOSITORY
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.errors import ArtifactError
from esrt.manifest import Activations, Precision, Quantization, read_manifest, sha256
from export import doctor, quantization_error, to_executorch, to_onnx
from export.backends.xnnpack import delegation_report, lower
from export.inspection import Inspection, Operation, problems
from export.recipe import export
from tests.export.helpers import all_but_linear

TARGETS = {"onnx": to_onnx.RECIPE, "executorch": to_executorch.RECIPE}


@pytest.fixture(scope="module")
def artifacts(lively: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    made = {}
    for kind, target in TARGETS.items():
        for precision in (Precision.FP32, Precision.INT8):
            made[f"{kind} {precision}"] = folder / f"{kind}-{precision}"
            export(target, lively, made[f"{kind} {precision}"], precision, "qformer")
    return made


@pytest.fixture
def copied(artifacts: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(artifacts[name], tmp_path / "copy"))


def relabel(folder: Path, **changes: Any) -> None:
    """Write the manifest anew, with the files' true hashes."""
    manifest = read_manifest(folder, verify=False)
    files = {name: sha256(folder / name) for name in manifest.files}
    msgspec.structs.replace(manifest, files=files, **changes).write(folder)


def run_doctor(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "export.doctor", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


# --- Sound artifacts --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TARGETS)
def test_a_sound_int8_artifact(kind: str, artifacts: dict[str, Path], lively: Checkpoint) -> None:
    folder = artifacts[f"{kind} int8"]
    done = run_doctor(folder, "--checkpoint", lively.folder, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert (found["kind"], found["precision"]) == (kind, "int8")
    assert found["size"] == sum(p.stat().st_size for p in folder.glob("model.*"))
    assert found["peak_memory"] > 50_000
    assert found["delegated"]["macs"] == 1
    # Convolutions and attention are in floating point; feed-forward and projections are not.
    assert 0.2 < found["integer"]["macs"] < 0.9
    assert found["parity"]["cosine_min"] > 0.97
    # q, k, v, out and two of the feed-forward; the same and a second attention in the Q-Former.
    assert len(found["layer_errors"]) == 6 + 10
    assert all(1e-4 < error < 0.05 for error in found["layer_errors"].values())
    assert found["texts"]["compared"] == 4  # the clips in English and German
    assert found["texts"]["equal"] + len(found["texts"]["differing"]) == 4
    assert any(kind == need.split()[0].lower() for need in found["needs"])


@pytest.mark.parametrize("kind", TARGETS)
def test_fp32_multiplies_no_integers(
    kind: str, artifacts: dict[str, Path], lively: Checkpoint
) -> None:
    found = doctor.inspect_artifact(artifacts[f"{kind} fp32"], lively)
    assert found.problems == ()
    assert found.integer == {"operators": 0, "macs": 0}
    assert found.layer_errors == {}
    assert found.texts["equal"] == found.texts["compared"] == 4


def test_both_formats_do_the_same_multiplications(artifacts: dict[str, Path]) -> None:
    """Counted in two independent ways, from a profile and from a file."""
    macs = []
    for kind in TARGETS:
        folder = artifacts[f"{kind} fp32"]
        manifest = read_manifest(folder)
        inspection = doctor.INSPECTORS[manifest.kind]().inspect(
            folder / manifest.entry, manifest, np.zeros((128, doctor.longest(manifest)), np.float32)
        )
        macs.append(sum(operation.macs for operation in inspection.operations))
    assert 0.9 < macs[0] / macs[1] < 1.0  # the rest are the means of ExecuTorch's layer norms


def test_the_report_fits_a_screen(artifacts: dict[str, Path]) -> None:
    done = run_doctor(artifacts["executorch int8"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) < 25
    assert "not measured: name the --checkpoint" in done.stdout


# --- Spoilt artifacts -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TARGETS)
def test_int8_in_name_only(kind: str, copied: Callable[[str], Path]) -> None:
    folder = copied(f"{kind} fp32")
    relabel(folder, precision="int8")
    done = run_doctor(folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "in floating point" in done.stdout


def test_a_linear_layer_on_a_portable_kernel(
    lively: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lower, "Partitioner", all_but_linear)
    monkeypatch.setattr(delegation_report, "check", lambda *_: None)
    out = tmp_path / "artifact"
    export(to_executorch.RECIPE, lively, out, Precision.FP32, "qformer")
    done = run_doctor(out)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "linear layers run on portable kernels" in done.stdout


def test_a_spoilt_weight(copied: Callable[[str], Path], lively: Checkpoint) -> None:
    folder = copied("onnx int8")
    model = onnx.load(folder / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name.endswith("MatMul_1_quantized") or (
        t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2))  # fmt: skip
    values = numpy_helper.to_array(tensor).copy()
    values[:] = np.random.default_rng(0).permutation(values.ravel()).reshape(values.shape)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, folder / "model.onnx")
    relabel(folder)
    found = doctor.inspect_artifact(folder, lively)
    assert any("not the checkpoint's" in problem for problem in found.problems)
    assert any("features are not torch's" in problem for problem in found.problems)


def test_a_changed_file_ends_with_2(copied: Callable[[str], Path]) -> None:
    folder = copied("onnx int8")
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    done = run_doctor(folder)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("kind", TARGETS)
def test_no_graph_at_all(kind: str, copied: Callable[[str], Path]) -> None:
    folder = copied(f"{kind} fp32")
    (folder / read_manifest(folder).entry).write_bytes(b"not a graph" * 9)
    relabel(folder)
    with pytest.raises(ArtifactError, match="cannot be read"):
        doctor.inspect_artifact(folder, None)


def test_another_checkpoint(artifacts: dict[str, Path]) -> None:
    nano = open_checkpoint(CHECKPOINT)
    with pytest.raises(ArtifactError, match=nano.fingerprint):
        doctor.inspect_artifact(artifacts["onnx fp32"], nano)


def test_layers_in_floating_point_must_be_named(artifacts: dict[str, Path]) -> None:
    manifest = read_manifest(artifacts["onnx int8"])
    operations = tuple(
        Operation("matmul", f"layer {place}", integer=place > 0, linear=True) for place in range(3)
    )
    inspection = Inspection(operations, lambda: iter(()), ())
    assert "1 of 3 linear layers" in problems(inspection, manifest)[0]
    kept = msgspec.structs.replace(
        manifest, quantization=Quantization(Activations.DYNAMIC, ("layer 0",), {})
    )
    assert problems(inspection, kept) == []
    floating = Inspection(operations[:1], lambda: iter(()), ())
    assert problems(floating, kept) != []  # nothing is int8


# --- Errors of layers -------------------------------------------------------------------------


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(128, 64), nn.Linear(64, 32)

    def forward(self, mel: Tensor) -> Tensor:
        hidden: Tensor = self.second(self.first(mel.transpose(1, 2)))
        return hidden


def test_errors_are_those_of_the_layers_alone() -> None:
    graph = _Two()
    mel = np.random.default_rng(0).standard_normal((128, 50)).astype(np.float32)
    spoilt = quantization_error.errors(
        graph,
        [mel],
        Activations.FLOAT,
        lambda name, weight: weight * 1.1 if name == "first" else weight,
    )
    assert spoilt["second"] == 0
    assert 0.08 < spoilt["first"] < 0.11  # the bias is as it was
    for activations in (Activations.DYNAMIC, Activations.STATIC):
        found = quantization_error.errors(graph, [mel], activations)  # type: ignore[arg-type]
        assert all(0.002 < error < 0.03 for error in found.values())
    mel[0, 0] = 100  # one outlier spoils a fixed range and only its own row of a dynamic one
    assert (
        quantization_error.errors(graph, [mel], Activations.STATIC)["first"]
        > 1.5 * quantization_error.errors(graph, [mel], Activations.DYNAMIC)["first"]
    )


def test_weights_are_matched_by_direction() -> None:
    graph = _Two()
    rounded = graph.first.weight.detach().half().float()
    other = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    found, foreign = quantization_error.matched(graph, iter([("a", rounded.numpy()), ("b", other)]))
    assert foreign == ["b"]
    torch.testing.assert_close(found["first"], rounded)
