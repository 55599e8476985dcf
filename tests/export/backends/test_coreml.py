"""The Core ML artifact, its saved program evaluated on this machine, against its checkpoint."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.proto import FeatureTypes_pb2, Model_pb2

from esrt.bundled import CHECKPOINT, REPOSITORY
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.errors import ArtifactError, CheckFailed
from esrt.manifest import Activations, Precision, read_manifest, sha256
from esrt.model import EdgeModel
from export import doctor, parity, quantization_error
from export.backends.coreml import lower
from export.backends.coreml.inspect import inspect
from export.backends.coreml.mil_interpreter import Program
from export.recipe import Settings, export
from export.to_coreml import RECIPE, export_coreml, runner
from tests.export.helpers import cosines, expected, mel

PACKAGE = "model.mlpackage/Data/com.apple.CoreML"
# 400 frames are the model's longest, which is traced, and one block is the shortest.
LENGTHS = [8, 16, 24, 152, 168, 400]
# Precision, activations, and how close to torch: the least cosine and the largest error.
FORMS: dict[str, tuple[Precision, Activations | None, float, float]] = {
    "fp32": (Precision.FP32, None, 0.999999, 1e-4),
    "fp16": (Precision.FP16, None, 0.9999, 0.05),
    "int8": (Precision.INT8, None, 0.995, 0.5),
    "static": (Precision.INT8, Activations.STATIC, 0.97, 1.0),
}


@pytest.fixture(scope="module")
def artifacts(
    lively: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The artifact of each form, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("artifacts")

    def made(form: str) -> Path:
        precision, activations, _, _ = FORMS[form]
        if not (folder / form).exists():
            export(RECIPE, lively, folder / form, precision, "qformer", activations=activations)
        return folder / form

    return made


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(folder: Path) -> Program:
    return Program(folder / read_manifest(folder).entry)


def stored(folder: Path) -> int:
    return (folder / PACKAGE / "weights" / "weight.bin").stat().st_size


# --- The artifact -----------------------------------------------------------------------------


def test_every_length_is_torchs(
    form: str, artifacts: Callable[[str], Path], model: EdgeModel
) -> None:
    run = runner(opened(artifacts(form)))
    _, _, cosine, error = FORMS[form]
    for frames in LENGTHS:
        found, reference = run(mel(frames)), expected(model, mel(frames))
        assert found.shape == (1, frames // 8, 24)
        assert found.dtype == np.float32
        assert cosines(found, reference).min() > cosine
        assert np.abs(found - reference).max() < error
        if form != "fp32":
            assert np.abs(found - reference).max() > 1e-4  # it is less precise indeed


def test_features_follow_the_speech(artifacts: Callable[[str], Path]) -> None:
    run = runner(opened(artifacts("int8")))
    assert (run(mel(160)) - run(mel(160, seed=1))).std() > 0.1


@pytest.mark.parametrize("frames", [0, 4, 408])
def test_no_other_length_is_taken(frames: int, artifacts: Callable[[str], Path]) -> None:
    with pytest.raises(CheckFailed, match=f"128, {frames}"):
        runner(opened(artifacts("int8")))(mel(frames))


def test_the_specification(form: str, artifacts: Callable[[str], Path]) -> None:
    program = opened(artifacts(form))
    (taken,), (made,) = program.spec.description.input, program.spec.description.output
    assert (taken.name, made.name) == ("mel", "features")
    for array in (taken.type.multiArrayType, made.type.multiArrayType):
        assert array.dataType == FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    ranges = taken.type.multiArrayType.shapeRange.sizeRanges
    assert [(each.lowerBound, each.upperBound) for each in ranges] == [(1, 1), (128, 128), (8, 400)]
    # The least systems: quantizing activations is of a later operation set than weights.
    later = form == "static"
    assert program.spec.specificationVersion == (8 if later else 7)
    assert program.spec.mlProgram.functions["main"].opset == ("CoreML7" if later else "CoreML6")
    assert program.needs.startswith("iOS 17, macOS 14" if later else "iOS 16, macOS 13")


def test_what_is_int8(form: str, artifacts: Callable[[str], Path]) -> None:
    program = opened(artifacts(form))
    linear = program.of_type("linear")
    makers = {step.output: step.type for step in program.steps}
    weights = [makers.get(step.inputs["weight"][0]) for step in linear]
    inputs = [makers.get(step.inputs["x"][0]) for step in linear]
    # q, k, v, out and two of the feed-forward, and in the Q-Former a second attention.
    assert len(linear) == 16
    int8 = form in ("int8", "static")
    assert set(weights) == {"constexpr_affine_dequantize" if int8 else None}
    assert ("dequantize" in inputs) == (form == "static")
    if form == "static":
        assert set(inputs) == {"dequantize"}
    for step in program.of_type("constexpr_affine_dequantize"):
        values, scale = (
            program.constants[step.inputs[name][0]] for name in ("quantized_data", "scale")
        )
        assert isinstance(values, torch.Tensor) and isinstance(scale, torch.Tensor)
        assert values.dtype == torch.int8
        assert scale.shape == (values.shape[0],)  # one for each output
        assert int(values.abs().max()) == 127
    floats = {step.dtype for step in linear}
    assert floats == {torch.float32 if form == "fp32" else torch.float16}


def test_the_manifest_is_true(
    form: str, artifacts: Callable[[str], Path], lively: Checkpoint
) -> None:
    folder = artifacts(form)
    manifest = read_manifest(folder)
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"]
    files.append(folder / "model.mlpackage" / "Manifest.json")
    assert manifest.files == {str(path.relative_to(folder)): sha256(path) for path in files}
    assert len(files) == 3
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in files)
    assert (manifest.kind, manifest.entry) == ("coreml", "model.mlpackage")
    assert (manifest.precision, manifest.split) == (FORMS[form][0], "qformer")
    assert manifest.fingerprint == lively.fingerprint
    assert manifest.inputs[0].shape == (1, 128, None)
    assert manifest.outputs[0].shape == (1, None, 24)
    assert manifest.tools == {name: version(name) for name in manifest.tools}
    assert {"torch", "coremltools"} <= manifest.tools.keys()
    parity.check(manifest.parity, parity.BOUNDS[manifest.precision])
    if FORMS[form][0] is not Precision.INT8:
        assert manifest.quantization is None
        return
    assert manifest.quantization is not None
    assert manifest.quantization.activations == ("static" if form == "static" else "float")
    assert manifest.quantization.kept == ()
    errors = manifest.quantization.errors
    assert len(errors) == 16
    assert all(0.001 < error < quantization_error.MAX_RELATIVE_ERROR for error in errors.values())


def test_int8_linear_weights_take_a_quarter(artifacts: Callable[[str], Path]) -> None:
    def size_of_weights(form: str) -> int:
        """Bytes of the linear layers' weights, with scales and zero points where there are any."""
        program = opened(artifacts(form))
        steps = program.of_type("constexpr_affine_dequantize")
        names = [name for step in steps for inputs in step.inputs.values() for name in inputs]
        names = names or [step.inputs["weight"][0] for step in program.of_type("linear")]
        constants = [program.constants[name] for name in names]
        return sum(value.nbytes for value in constants if isinstance(value, torch.Tensor))

    assert size_of_weights("fp16") == size_of_weights("fp32") / 2
    assert 0.25 < size_of_weights("int8") / size_of_weights("fp32") < 0.3
    assert stored(artifacts("int8")) < stored(artifacts("fp16")) < 0.55 * stored(artifacts("fp32"))


@pytest.mark.parametrize("form", ["int8", "static"], indirect=True)
def test_the_inspection(form: str, artifacts: Callable[[str], Path]) -> None:
    folder = artifacts(form)
    manifest = read_manifest(folder)
    found = inspect(folder / manifest.entry, manifest, mel(400)[0])
    linear = [each for each in found.operations if each.linear]
    assert len(linear) == 16
    assert all(each.integer == (form == "static") for each in linear)
    by_name = {each.layer: each.macs for each in found.operations}
    (conv, *_) = (each for each in found.operations if each.name == "conv")
    assert conv.macs == 400 * 32 * 128 * 3
    (scores, *_) = (each for each in found.operations if each.name == "matmul")
    assert scores.macs == 200 * 200 * 32
    assert sum(each.macs for each in linear) < sum(by_name.values())
    weights = dict(found.weights())
    assert len(weights) == 16
    assert {array.shape for array in weights.values()} >= {(64, 32), (32, 64), (48, 24)}
    assert len(found.needs) == (2 if form == "static" else 1)


@pytest.mark.parametrize("form", ["fp32", "int8", "static"], indirect=True)
def test_the_doctor(form: str, artifacts: Callable[[str], Path], lively: Checkpoint) -> None:
    diagnosis = doctor.inspect_artifact(artifacts(form), lively)
    assert diagnosis.problems == ()
    assert diagnosis.delegated == {"operators": 1, "macs": 1}
    assert (diagnosis.integer["macs"] > 0.2) == (form == "static")
    assert len(diagnosis.layer_errors) == (0 if form == "fp32" else 16)
    assert diagnosis.parity["cosine_min"] > 0.99
    assert diagnosis.texts["compared"] > 0


# --- Other forms ------------------------------------------------------------------------------


def test_the_projector_and_one_length_in_int8(
    lively: Checkpoint, model: EdgeModel, tmp_path: Path
) -> None:
    exported = export(
        *(RECIPE, lively, tmp_path / "artifact", Precision.INT8, "adapter"),
        seconds=[1.5],
        activations=Activations.STATIC,
    )
    manifest = exported.manifest
    assert manifest.lengths == (1.52,)
    assert manifest.inputs[0].shape == (1, 128, 152)
    assert manifest.outputs[0].shape == (1, 19, 64)
    program = opened(tmp_path / "artifact")
    # What the queries make of themselves is computed by the conversion.
    assert len(program.of_type("linear")) == 16 + 2 - 5
    assert {step.type for step in program.steps}.isdisjoint({"shape", "gather"})
    found = runner(program)(mel(152))
    with torch.inference_mode():
        reference = model(torch.from_numpy(mel(152))).numpy()
    assert cosines(found, reference).min() > 0.97
    with pytest.raises(CheckFailed, match="128, 160"):
        runner(program)(mel(160))


def test_several_lengths(lively: Checkpoint, model: EdgeModel, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    export(RECIPE, lively, out, Precision.FP16, "qformer", seconds=[2, 1])
    program = opened(out)
    (taken,) = program.spec.description.input
    shapes = taken.type.multiArrayType.enumeratedShapes.shapes
    assert sorted(tuple(each.shape) for each in shapes) == [(1, 128, 104), (1, 128, 200)]
    for frames in (104, 200):
        assert cosines(runner(program)(mel(frames)), expected(model, mel(frames))).min() > 0.9999
    with pytest.raises(CheckFailed, match="128, 152"):
        runner(program)(mel(152))


def test_more_lengths_than_core_ml_takes(model: EdgeModel) -> None:
    settings = Settings(lengths=tuple(range(8, 8 * 130, 8)))
    with pytest.raises(ArtifactError, match="at most 128 lengths, not 129"):
        lower.convert(lower.CoreMLGraph(model, "qformer"), settings, {}, ())


def test_the_command_on_the_shipped_model(tmp_path: Path) -> None:
    nano = open_checkpoint(CHECKPOINT)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "export" / "to_coreml.py"), "--checkpoint", nano.folder,
         "--out", "artifact"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert nano.fingerprint in done.stdout
    assert "iOS 16, macOS 13" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    manifest = read_manifest(tmp_path / "artifact")
    assert manifest.precision == "int8"
    assert manifest.parity["cosine_min"] > 0.99
    parameters = sum(tensor.numel() for tensor in nano.edge_model().parameters())
    assert stored(tmp_path / "artifact") < 1.3 * parameters  # bytes; 4 each in fp32
    assert runner(opened(tmp_path / "artifact"))(mel(1200)).shape == (1, 150, 192)


# --- Failures ---------------------------------------------------------------------------------


class Spoilt:
    """A converted model that is changed after it is saved."""

    def __init__(self, model: Any, spoil: Callable[[Path], None]) -> None:
        self.model, self.spoil = model, spoil

    def save(self, path: str) -> None:
        self.model.save(path)
        self.spoil(Path(path) / "Data" / "com.apple.CoreML")


def a_weight(folder: Path) -> None:
    """One number of the largest weight, a few times as large as it is."""
    spec = Model_pb2.Model()
    spec.ParseFromString((folder / "model.mlmodel").read_bytes())
    weights = bytearray((folder / "weights" / "weight.bin").read_bytes())
    values = np.frombuffer(weights, np.float32)
    place = int(np.argmax(np.where(np.isfinite(values) & (np.abs(values) < 10), np.abs(values), 0)))
    values[place] *= 3
    (folder / "weights" / "weight.bin").write_bytes(weights)


def changed(folder: Path, change: Callable[[Any, list[Any]], None]) -> None:
    """Rewrite the program."""
    model = folder / "model.mlmodel"
    spec = Model_pb2.Model()
    spec.ParseFromString(model.read_bytes())
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    change(block, list(block.operations))
    model.write_bytes(spec.SerializeToString())


def no_residual(folder: Path) -> None:
    """The last residual connection adds a layer's output to itself."""

    def change(_: Any, operations: list[Any]) -> None:
        last = [each for each in operations if each.type == "add"][-1]
        last.inputs["y"].CopyFrom(last.inputs["x"])

    changed(folder, change)


def no_gelu(folder: Path) -> None:
    """A GELU becomes a ReLU."""

    def change(_: Any, operations: list[Any]) -> None:
        gelu = [each for each in operations if each.type == "gelu"][-1]
        gelu.type = "relu"
        del gelu.inputs["mode"]

    changed(folder, change)


def other_epsilon(folder: Path) -> None:
    """The first layer norm divides by more than it should."""

    def change(_: Any, operations: list[Any]) -> None:
        norm = next(each for each in operations if each.type == "layer_norm")
        name = norm.inputs["epsilon"].arguments[0].name
        epsilon = next(each for each in operations if each.outputs[0].name == name)
        epsilon.attributes["val"].immediateValue.tensor.floats.values[0] = 0.1

    changed(folder, change)


def wrong_softmax(folder: Path) -> None:
    """Attention is shared out among the queries, not among what they read."""

    def change(_: Any, operations: list[Any]) -> None:
        softmax = next(each for each in operations if each.type == "softmax")
        name = softmax.inputs["axis"].arguments[0].name
        axis = next(each for each in operations if each.outputs[0].name == name)
        axis.attributes["val"].immediateValue.tensor.ints.values[0] = -2

    changed(folder, change)


@pytest.mark.parametrize("spoil", [a_weight, no_residual, no_gelu, other_epsilon, wrong_softmax])
def test_a_spoilt_program_fails_and_leaves_nothing(
    spoil: Callable[[Path], None],
    lively: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert = lower.convert
    monkeypatch.setattr(lower, "convert", lambda *args: Spoilt(convert(*args), spoil))
    with pytest.raises(CheckFailed, match=r"features are not torch's") as caught:
        export_coreml(lively, tmp_path / "artifact", Precision.FP32, "qformer")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_int8_that_is_none_fails(
    lively: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lower.optimize, "linear_quantize_weights", lambda model, _: model)
    with pytest.raises(CheckFailed, match=r"floating point: .*encoder_layers_0_self_attn_q_proj"):
        export_coreml(lively, tmp_path / "artifact", Precision.INT8, "qformer")
    assert list(tmp_path.iterdir()) == []


def test_layers_that_int8_hurts_are_kept_and_named(
    lively: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = "model.encoder.layers.0.fc2"
    errors = quantization_error.errors
    monkeypatch.setattr(
        quantization_error,
        "errors",
        lambda *args: {
            **errors(*args),
            layer: 2 * quantization_error.MAX_RELATIVE_ERROR,
        },
    )
    exported = export(
        *(RECIPE, lively, tmp_path / "artifact", Precision.INT8, "qformer"),
        activations=Activations.STATIC,
    )
    assert exported.manifest.quantization is not None
    assert exported.manifest.quantization.kept == (layer,)
    program = opened(tmp_path / "artifact")
    makers = {step.output: step.type for step in program.steps}
    (kept,) = (
        step
        for step in program.of_type("linear")
        if makers.get(step.inputs["weight"][0]) != "constexpr_affine_dequantize"
    )
    assert kept.inputs["weight"] == (lower.weight_name(layer),)
    assert makers[kept.inputs["x"][0]] != "dequantize"
