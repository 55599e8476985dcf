"""The Core ML artifact: its saved program, evaluated by the interpreter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.proto import FeatureTypes_pb2, Model_pb2

from esrt.bundled import CHECKPOINT
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.errors import ArtifactError, CheckFailed
from esrt.manifest import Activations, Precision
from esrt.model import EdgeModel
from esrt.wire import Split
from export.backends import get_recipe
from export.backends.coreml import lower
from export.backends.coreml.mil_interpreter import Program
from export.backends.coreml.rewrite import CoreMLGraph
from export.backends.coreml.runner import load_runner
from export.recipe import Settings, export
from tests.export.helpers import Artifact, Exporter, cosines, expected, mel

RECIPE = get_recipe("coreml")
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(params=["fp32", "fp16", "int8", "static"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def artifact(form: str, artifacts: Exporter) -> Artifact:
    return artifacts("coreml", form)


@pytest.fixture
def program(artifact: Artifact) -> Program:
    return Program(artifact.path)


def stored(package: Path) -> int:
    return (package / WEIGHTS).stat().st_size


# --- The artifact -----------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [0, 4, 408])
def test_no_other_length_is_taken(frames: int, artifacts: Exporter) -> None:
    with pytest.raises(CheckFailed, match=f"128, {frames}"):
        artifacts("coreml", "int8").run(mel(frames))


def test_the_specification(form: str, program: Program) -> None:
    (taken,), (made,) = program.spec.description.input, program.spec.description.output
    assert (taken.name, made.name) == ("mel", "features")
    for array in (taken.type.multiArrayType, made.type.multiArrayType):
        assert array.dataType == FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    ranges = taken.type.multiArrayType.shapeRange.sizeRanges
    assert [(each.lowerBound, each.upperBound) for each in ranges] == [(1, 1), (128, 128), (8, 400)]
    # The oldest systems: quantized activations need a later operation set than quantized weights.
    later = form == "static"
    assert program.spec.specificationVersion == (8 if later else 7)
    assert program.spec.mlProgram.functions["main"].opset == ("CoreML7" if later else "CoreML6")
    assert program.requirements.startswith("iOS 17, macOS 14" if later else "iOS 16, macOS 13")


def test_the_report_names_the_systems(artifacts: Exporter) -> None:
    assert "iOS 16, macOS 13" in artifacts("coreml", "int8").report


def test_types_of_weights_and_inputs(form: str, program: Program) -> None:
    linear = program.of_type("linear")
    producers = {step.output: step.type for step in program.steps}
    weights = [producers.get(step.inputs["weight"][0]) for step in linear]
    inputs = [producers.get(step.inputs["x"][0]) for step in linear]
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


def test_layers_that_are_sensitive_to_int8_stay_in_fp16(artifacts: Exporter) -> None:
    artifact = artifacts("coreml", "kept")
    program = Program(artifact.path)
    producers = {step.output: step.type for step in program.steps}
    (kept,) = (
        step
        for step in program.of_type("linear")
        if producers.get(step.inputs["weight"][0]) != "constexpr_affine_dequantize"
    )
    assert artifact.manifest.quantization is not None
    assert artifact.manifest.quantization.kept == ("model.encoder.layers.0.fc2",)
    assert kept.inputs["weight"] == (lower.weight_name("model.encoder.layers.0.fc2"),)
    assert producers[kept.inputs["x"][0]] != "dequantize"


def test_int8_linear_weights_take_a_quarter(artifacts: Exporter) -> None:
    def size_of_weights(form: str) -> int:
        """Bytes of the linear layers' weights, with scales and zero points where there are any."""
        program = Program(artifacts("coreml", form).path)
        steps = program.of_type("constexpr_affine_dequantize")
        names = [name for step in steps for inputs in step.inputs.values() for name in inputs]
        names = names or [step.inputs["weight"][0] for step in program.of_type("linear")]
        constants = [program.constants[name] for name in names]
        return sum(value.nbytes for value in constants if isinstance(value, torch.Tensor))

    assert size_of_weights("fp16") == size_of_weights("fp32") / 2
    assert 0.25 < size_of_weights("int8") / size_of_weights("fp32") < 0.3
    fp32, fp16, int8 = (stored(artifacts("coreml", form).path) for form in ("fp32", "fp16", "int8"))
    assert int8 < fp16 < 0.55 * fp32


@pytest.mark.parametrize("form", ["int8", "static"], indirect=True)
def test_the_inspection(form: str, artifact: Artifact) -> None:
    inspection = artifact.inspect()
    macs = {operation.layer: operation.macs for operation in inspection.operations}
    (conv, *_) = (each for each in inspection.operations if each.name == "conv")
    assert conv.macs == 400 * 32 * 128 * 3
    (scores, *_) = (each for each in inspection.operations if each.name == "matmul")
    assert scores.macs == 200 * 200 * 32
    assert sum(each.macs for each in inspection.operations if each.linear) < sum(macs.values())
    assert len(inspection.requirements) == (2 if form == "static" else 1)


# --- Other forms ------------------------------------------------------------------------------


def test_the_projector_and_one_length_in_int8(
    lively: Checkpoint, model: EdgeModel, tmp_path: Path
) -> None:
    exported = export(
        *(RECIPE, lively, tmp_path / "artifact", Precision.INT8, Split.ADAPTER),
        seconds=[1.5],
        activations=Activations.STATIC,
    )
    assert exported.manifest.lengths == (1.52,)
    path = tmp_path / "artifact" / exported.manifest.entry
    program = Program(path)
    # The conversion computes the queries' self-attention.
    assert len(program.of_type("linear")) == 16 + 2 - 5
    assert {step.type for step in program.steps}.isdisjoint({"shape", "gather"})
    features = load_runner(path)(mel(152))
    assert cosines(features, expected(model, mel(152), Split.ADAPTER)).min() > 0.97


def test_several_lengths_are_enumerated(artifacts: Exporter) -> None:
    artifact = artifacts("coreml", "several")
    (taken,) = Program(artifact.path).spec.description.input
    shapes = taken.type.multiArrayType.enumeratedShapes.shapes
    assert sorted(tuple(each.shape) for each in shapes) == [(1, 128, 104), (1, 128, 304)]
    with pytest.raises(CheckFailed, match="128, 152"):
        artifact.run(mel(152))


def test_more_lengths_than_core_ml_takes(model: EdgeModel) -> None:
    settings = Settings(lengths=tuple(range(8, 8 * 130, 8)))
    graph = CoreMLGraph(model, Split.QFORMER)
    with pytest.raises(ArtifactError, match="at most 128 lengths, not 129"):
        lower.convert(graph, model.config, settings, {}, ())


def test_the_shipped_model(tmp_path: Path) -> None:
    nano, out = open_checkpoint(CHECKPOINT), tmp_path / "artifact"
    manifest = export(RECIPE, nano, out, Precision.INT8, Split.QFORMER).manifest
    assert manifest.fingerprint == nano.fingerprint
    assert manifest.parity["cosine_min"] > 0.99
    parameters = sum(tensor.numel() for tensor in nano.edge_model().parameters())
    assert stored(out / manifest.entry) < 1.3 * parameters  # bytes; 4 each in fp32
    assert load_runner(out / manifest.entry)(mel(1200)).shape == (1, 150, 192)


# --- Failures ---------------------------------------------------------------------------------


class DamagedModel:
    """A converted model whose files are changed after it is saved."""

    def __init__(self, model: Any, damage: Callable[[Path], None]) -> None:
        self.model, self.damage = model, damage

    def save(self, path: str) -> None:
        self.model.save(path)
        self.damage(Path(path) / "Data" / "com.apple.CoreML")


def a_weight(folder: Path) -> None:
    """The largest weight becomes three times as large."""
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
        last = [operation for operation in operations if operation.type == "add"][-1]
        last.inputs["y"].CopyFrom(last.inputs["x"])

    changed(folder, change)


def no_gelu(folder: Path) -> None:
    """A GELU becomes a ReLU."""

    def change(_: Any, operations: list[Any]) -> None:
        gelu = [operation for operation in operations if operation.type == "gelu"][-1]
        gelu.type = "relu"
        del gelu.inputs["mode"]

    changed(folder, change)


def other_epsilon(folder: Path) -> None:
    """The first layer norm has a larger epsilon."""

    def change(_: Any, operations: list[Any]) -> None:
        norm = next(operation for operation in operations if operation.type == "layer_norm")
        name = norm.inputs["epsilon"].arguments[0].name
        epsilon = next(operation for operation in operations if operation.outputs[0].name == name)
        epsilon.attributes["val"].immediateValue.tensor.floats.values[0] = 0.1

    changed(folder, change)


def wrong_softmax(folder: Path) -> None:
    """Attention weights sum to one over the queries, not over the keys."""

    def change(_: Any, operations: list[Any]) -> None:
        softmax = next(operation for operation in operations if operation.type == "softmax")
        name = softmax.inputs["axis"].arguments[0].name
        axis = next(operation for operation in operations if operation.outputs[0].name == name)
        axis.attributes["val"].immediateValue.tensor.ints.values[0] = -2

    changed(folder, change)


@pytest.mark.parametrize("damage", [a_weight, no_residual, no_gelu, other_epsilon, wrong_softmax])
def test_a_damaged_program_fails_and_leaves_nothing(
    damage: Callable[[Path], None],
    lively: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert = lower.convert
    monkeypatch.setattr(lower, "convert", lambda *args: DamagedModel(convert(*args), damage))
    with pytest.raises(CheckFailed, match=r"features are not torch's") as caught:
        export(RECIPE, lively, tmp_path / "artifact", Precision.FP32, Split.QFORMER)
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_int8_in_name_only_fails(
    lively: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lower.optimize, "linear_quantize_weights", lambda model, _: model)
    with pytest.raises(CheckFailed, match=r"floating point: .*encoder_layers_0_self_attn_q_proj"):
        export(RECIPE, lively, tmp_path / "artifact", Precision.INT8, Split.QFORMER)
    assert list(tmp_path.iterdir()) == []
