"""The doctor, on sound artifacts and on artifacts that were damaged on purpose.

`test_backends` runs the doctor on every backend's artifacts.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from esrt.bundled import CHECKPOINT, REPOSITORY
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.cli import run
from esrt.errors import ArtifactError
from esrt.manifest import Activations, Precision, Quantization, read_manifest
from esrt.wire import Split
from export import cli, doctor, peak_memory, quantization_error
from export.backends import get_recipe
from export.backends.xnnpack import delegation_report, lower
from export.diagnosis import inspect_artifact
from export.inspection import Inspection, Operation, find_problems
from export.recipe import export
from tests.export.helpers import KINDS, Exporter, all_but_linear, relabel


class Result(NamedTuple):
    """Exit code and output of a command."""

    exit_code: int | str | None
    output: str
    stderr: str


@pytest.fixture
def run_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """The command in this process, with a peak memory that is not measured."""
    monkeypatch.setattr(peak_memory, "peak_bytes", lambda _: 1_000_000)
    monkeypatch.setattr(cli.logging, "disable", lambda _: None)

    def run_main(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            run(doctor.examine, [*map(str, arguments)])
        return Result(ended.value.code, *capsys.readouterr())

    return run_main


# --- Sound artifacts --------------------------------------------------------------------------


def test_the_command(artifacts: Exporter, lively: Checkpoint) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "export.doctor", artifacts("executorch", "int8").folder),
            *("--checkpoint", lively.folder, "--json"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    diagnosis = json.loads(done.stdout)
    assert diagnosis["problems"] == []
    assert (diagnosis["kind"], diagnosis["precision"]) == ("executorch", "int8")
    assert diagnosis["peak_memory"] > 50_000
    assert any(need.startswith("ExecuTorch") for need in diagnosis["needs"])


def test_all_formats_do_the_same_multiplications(artifacts: Exporter) -> None:
    """Counted in independent ways: from a profile, from a file, and by an interpreter."""
    macs = {
        kind: sum(operation.macs for operation in artifacts(kind, "fp32").inspect().operations)
        for kind in KINDS
    }
    assert macs["coreml"] == macs["onnx"]
    # The rest are the means of ExecuTorch's layer norms.
    assert 0.9 < macs["onnx"] / macs["executorch"] < 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_fits_a_screen(
    kind: str, artifacts: Exporter, run_doctor: Callable[..., Result]
) -> None:
    result = run_doctor(artifacts(kind, "int8").folder)
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) < 25
    assert "not measured: pass the --checkpoint" in result.output
    if kind == "coreml":
        assert "delegated      unknown" in result.output
        assert "their weights: all int8" in result.output
        assert "int8 products  none, as the manifest says" in result.output
        assert re.search(r"float products 100\.0% of the multiply-adds: .*16 linear", result.output)
    else:
        assert "optimized kernels run 100.0% of the multiply-adds" in result.output
        assert "16; their weights and inputs: all int8" in result.output
        assert re.search(r"int8 products  [2-8]\d\.\d% of the multiply-adds", result.output)
        assert "operators," not in result.output


def test_the_report_names_the_layers_in_floating_point(
    artifacts: Exporter, run_doctor: Callable[..., Result]
) -> None:
    result = run_doctor(artifacts("onnx", "kept").folder)
    assert result.exit_code == 0, result.output
    assert "1 of them in floating point: " in result.output
    assert "encoder.layers.0.fc2" in result.output


# --- Damaged artifacts ------------------------------------------------------------------------


def test_a_linear_layer_on_a_portable_kernel(
    lively: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_doctor: Callable[..., Result],
) -> None:
    monkeypatch.setattr(lower, "Partitioner", all_but_linear)
    monkeypatch.setattr(delegation_report, "check", lambda *_: None)
    out = tmp_path / "artifact"
    export(get_recipe("executorch"), lively, out, Precision.FP32, Split.QFORMER)
    result = run_doctor(out)
    assert result.exit_code == 1, result.output
    assert "linear layers run on portable kernels" in result.output


def test_changed_weights(copied: Callable[[str, str], Path], lively: Checkpoint) -> None:
    folder = copied("onnx", "int8")
    model = onnx.load(folder / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name.endswith("MatMul_1_quantized") or (
        t.data_type == onnx.TensorProto.UINT8 and len(t.dims) == 2))  # fmt: skip
    values = numpy_helper.to_array(tensor).copy()
    values[:] = np.random.default_rng(0).permutation(values.ravel()).reshape(values.shape)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, folder / "model.onnx")
    relabel(folder)
    problems = inspect_artifact(folder, read_manifest(folder), lively).problems
    assert any("not the checkpoint's" in problem for problem in problems)
    assert any("features are not torch's" in problem for problem in problems)


def test_a_changed_file_ends_with_2(
    copied: Callable[[str, str], Path], run_doctor: Callable[..., Result]
) -> None:
    folder = copied("onnx", "int8")
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    result = run_doctor(folder)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("kind", ["onnx", "executorch"])
def test_no_graph_at_all(kind: str, copied: Callable[[str, str], Path]) -> None:
    folder = copied(kind, "fp32")
    (folder / read_manifest(folder).entry).write_bytes(b"not a graph" * 9)
    relabel(folder)
    with pytest.raises(ArtifactError, match="cannot be read"):
        inspect_artifact(folder, read_manifest(folder), None)


def test_an_unknown_kind(copied: Callable[[str, str], Path]) -> None:
    folder = copied("onnx", "fp32")
    relabel(folder, kind="tflite")
    with pytest.raises(ArtifactError, match="'tflite'"):
        inspect_artifact(folder, read_manifest(folder), None)


def test_another_checkpoint(artifacts: Exporter) -> None:
    nano = open_checkpoint(CHECKPOINT)
    folder = artifacts("onnx", "fp32").folder
    with pytest.raises(ArtifactError, match=nano.fingerprint):
        inspect_artifact(folder, read_manifest(folder), nano)


def test_layers_in_floating_point_must_be_named(artifacts: Exporter) -> None:
    manifest = artifacts("onnx", "int8").manifest
    operations = tuple(
        Operation("matmul", f"layer {place}", integer=place > 0, linear=True) for place in range(3)
    )
    inspection = Inspection(operations, lambda: iter(()), ())
    assert "1 of 3 linear layers" in find_problems(inspection, manifest)[0]
    kept = msgspec.structs.replace(
        manifest, quantization=Quantization(Activations.DYNAMIC, ("layer 0",), {})
    )
    assert find_problems(inspection, kept) == []
    floating = Inspection(operations[:1], lambda: iter(()), ())
    assert find_problems(floating, kept) != []  # nothing is int8


def test_floating_point_weights_must_be_named(artifacts: Exporter) -> None:
    """Without int8 activations, a graph has no int8 product, so its weights are counted."""
    artifact = artifacts("coreml", "int8")
    inspection, manifest = artifact.inspect(), artifact.manifest
    assert manifest.quantization is not None
    assert manifest.quantization.activations is Activations.FLOAT
    assert find_problems(inspection, manifest) == []
    *others, lost = inspection.weights()
    fewer = Inspection(inspection.operations, lambda: iter(others), ())
    (problem,) = find_problems(fewer, manifest)
    assert "1 of 16 linear layers have floating-point weights" in problem
    kept = msgspec.structs.replace(manifest.quantization, kept=(lost[0],))
    assert find_problems(fewer, msgspec.structs.replace(manifest, quantization=kept)) == []
    none = Inspection(inspection.operations, lambda: iter(()), ())
    assert find_problems(none, manifest) != []


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
    changed = quantization_error.layer_errors(
        graph,
        [mel],
        Activations.FLOAT,
        lambda name, weight: weight * 1.1 if name == "first" else weight,
    )
    assert changed["second"] == 0
    assert 0.08 < changed["first"] < 0.11  # the bias is as it was
    for activations in (Activations.DYNAMIC, Activations.STATIC):
        errors = quantization_error.layer_errors(graph, [mel], activations)
        assert all(0.002 < error < 0.03 for error in errors.values())
    mel[0, 0] = 100  # an outlier widens a fixed range, but only its own row of a dynamic one
    fixed, per_token, per_input = (
        quantization_error.layer_errors(graph, [mel], activations, token_ranges=token_ranges)
        for activations, token_ranges in (
            (Activations.STATIC, True),
            (Activations.DYNAMIC, True),
            (Activations.DYNAMIC, False),
        )
    )
    assert fixed["first"] > 1.5 * per_token["first"]
    assert per_input["first"] == pytest.approx(fixed["first"])  # one clip makes both ranges


def test_weights_are_matched_by_direction() -> None:
    graph = _Two()
    rounded = graph.first.weight.detach().half().float()
    other = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    matches, unmatched = quantization_error.match_weights(
        graph, iter([("a", rounded.numpy()), ("b", other)])
    )
    assert unmatched == ["b"]
    torch.testing.assert_close(matches["first"], rounded)
