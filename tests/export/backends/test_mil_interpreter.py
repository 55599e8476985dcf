"""The interpreter of Core ML programs, on programs of one operation and on damaged programs."""

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its customary name
from coremltools.converters.mil.mil import types
from coremltools.proto import Model_pb2

from esrt.arrays import Float32Array
from esrt.errors import ArtifactError, CheckFailed
from export.backends.coreml.mil_interpreter import Program
from export.backends.coreml.mil_ops import OPERATIONS

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((1, 4, 6)).astype(np.float32)
WEIGHT = RANDOM.standard_normal((5, 6)).astype(np.float32)
BIAS = RANDOM.standard_normal(5).astype(np.float32)
KERNEL = RANDOM.standard_normal((3, 4, 3)).astype(np.float32)
CODES = RANDOM.integers(-127, 128, (5, 6)).astype(np.int8)
SCALES = (0.01 * np.arange(1, 6)).astype(np.float32)
GAMMA, BETA = WEIGHT[0], WEIGHT[1]
ERF = np.vectorize(math.erf)


def saved(
    body: Callable[..., Any], folder: Path, *, half: bool = False, target: Any = ct.target.iOS17
) -> Path:
    """Save a program of one input ``x`` like X and one output, without any optimization."""
    dtype = types.fp16 if half else types.fp32

    @mb.program(input_specs=[mb.TensorSpec(X.shape, dtype)], opset_version=target)  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        return body(x)

    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )
    model.save(str(folder / "one.mlpackage"))
    return folder / "one.mlpackage"


def evaluated(package: Path, x: Float32Array = X) -> Float32Array:
    program = Program(package)
    (name,) = (each.name for each in program.spec.description.input)
    (result,) = program.run({name: x}).values()
    return result


def convolved(stride: int, before: int, after: int) -> Float32Array:
    """Convolution by its definition."""
    padded = np.pad(X[0], ((0, 0), (before, after)))
    places = range(0, padded.shape[1] - 2, stride)
    return np.stack([(KERNEL * padded[:, at : at + 3]).sum((1, 2)) for at in places], 1)[None]


def normed(epsilon: float) -> Float32Array:
    centred = X - X.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt(X.var(-1, keepdims=True) + epsilon) * GAMMA + BETA)


def shares(x: Float32Array, axis: int) -> Float32Array:
    powers = np.exp(x)
    return np.asarray(powers / powers.sum(axis, keepdims=True))


def size(x: Any, axis: int) -> Any:
    """A size of a tensor, as the conversion writes it."""
    return mb.gather(x=mb.shape(x=x), indices=axis, axis=0, batch_dims=0, validate_indices=False)


def beyond(x: Any) -> Any:
    """End of a slice beyond the end of the tensor."""
    sizes = (size(x, 0), mb.add(x=size(x, 1), y=5), size(x, 2))
    return mb.concat(values=sizes, axis=0, interleave=False)


CASES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "add": (lambda x: mb.add(x=x, y=GAMMA), X + GAMMA),
    "cast": (lambda x: mb.cast(x=x, dtype="int32"), np.trunc(X)),
    "concat": (
        lambda x: mb.concat(values=(x, mb.mul(x=x, y=2.0)), axis=-1, interleave=False),
        np.concatenate([X, 2 * X], -1),
    ),
    "constexpr_affine_dequantize": (
        lambda x: mb.linear(
            x=x,
            weight=mb.constexpr_affine_dequantize(
                quantized_data=CODES, zero_point=np.int8(3), scale=SCALES, axis=0
            ),
            bias=BIAS,
        ),
        X @ ((CODES.astype(np.float32) - 3) * SCALES[:, None]).T + BIAS,
    ),
    "conv": (
        lambda x: mb.conv(
            x=x, weight=KERNEL, strides=[2], pad_type="custom", pad=[2, 1], dilations=[1], groups=1
        ),
        convolved(2, 2, 1),
    ),
    "dequantize": (
        lambda x: mb.dequantize(
            input=mb.quantize(input=x, scale=0.03, zero_point=np.int8(20), output_dtype="int8"),
            scale=0.03,
            zero_point=np.int8(20),
        ),
        (np.clip(np.round(X / 0.03) + 20, -128, 127) - 20) * 0.03,
    ),
    "floor_div": (lambda x: mb.floor_div(x=size(x, 2), y=4), 1),
    "gather": (lambda x: size(x, -2), 4),
    "gelu": (lambda x: mb.gelu(x=x, mode="EXACT"), X / 2 * (1 + ERF(X / 2**0.5))),
    "layer_norm": (
        lambda x: mb.layer_norm(x=x, axes=[-1], gamma=GAMMA, beta=BETA, epsilon=0.1),
        normed(0.1),
    ),
    "linear": (lambda x: mb.linear(x=x, weight=WEIGHT, bias=BIAS), X @ WEIGHT.T + BIAS),
    "matmul": (
        lambda x: mb.matmul(x=x, y=x, transpose_x=True, transpose_y=False),
        np.einsum("bij,bik->bjk", X, X),
    ),
    "mul": (lambda x: mb.mul(x=x, y=GAMMA), X * GAMMA),
    "quantize": (
        lambda x: mb.cast(x=mb.quantize(input=x, scale=0.05, output_dtype="uint8"), dtype="int32"),
        np.clip(np.round(X / 0.05), 0, 255),
    ),
    "relu": (lambda x: mb.relu(x=x), np.maximum(X, 0)),
    "reshape": (lambda x: mb.reshape(x=x, shape=[2, -1, 3]), X.reshape(2, 4, 3)),
    "shape": (lambda x: mb.shape(x=x), [1, 4, 6]),
    "slice_by_index": (
        lambda x: mb.slice_by_index(
            x=x,
            begin=[7, 1, 2],
            end=[9, 3, 0],
            begin_mask=[True, False, False],
            end_mask=[True, False, True],
        ),
        X[:, 1:3, 2:],
    ),
    "softmax": (lambda x: mb.softmax(x=x, axis=1), shares(X, 1)),
    "transpose": (lambda x: mb.transpose(x=x, perm=[2, 0, -2]), np.transpose(X, (2, 0, 1))),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_by_its_definition(name: str, tmp_path: Path) -> None:
    body, expected = CASES[name]
    package = saved(body, tmp_path)
    assert name in {step.type for step in Program(package).steps}
    result = evaluated(package)
    assert result.shape == np.shape(expected)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_fp16_is_rounded_after_each_operation(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        near = mb.add(x=mb.mul(x=x, y=np.float16(0)), y=np.float16(1))
        lost = mb.add(x=near, y=np.float16(2**-12))
        return mb.cast(x=mb.mul(x=lost, y=np.float16(1024)), dtype="fp32")

    result = evaluated(saved(body, tmp_path, half=True), X.astype(np.float16))
    np.testing.assert_array_equal(result, np.full(X.shape, 1024.0))


def test_an_fp16_overflow_is_infinite(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        huge = mb.add(x=mb.mul(x=x, y=np.float16(0)), y=np.float16(60_000))
        return mb.cast(x=mb.mul(x=mb.mul(x=huge, y=np.float16(2)), y=np.float16(0.5)), dtype="fp32")

    assert np.isinf(evaluated(saved(body, tmp_path, half=True), X.astype(np.float16))).all()


# --- Unknown operations --------------------------------------------------------------------------


def test_an_unknown_operation_is_named(tmp_path: Path) -> None:
    package = saved(lambda x: mb.softplus(x=x, name="later"), tmp_path)
    with pytest.raises(CheckFailed, match=r"softplus \(later\) is not supported") as caught:
        Program(package)
    assert caught.value.exit_code == 1


def test_an_unknown_parameter_is_named(tmp_path: Path) -> None:
    package = saved(
        lambda x: mb.slice_by_index(x=x, begin=[0, 0, 0], end=[1, 4, 6], stride=[1, 2, 1]),
        tmp_path,
    )
    with pytest.raises(CheckFailed, match=r"slice_by_index .* 'stride'"):
        Program(package)


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"), "gelu .*TANH_APPROXIMATION"),
        (lambda x: mb.layer_norm(x=x, axes=[1], epsilon=0.1), "layer_norm"),
        (lambda x: mb.conv(x=x, weight=KERNEL, pad_type="same"), "conv"),
        (lambda x: mb.concat(values=(x, x), axis=1, interleave=True), "concat .*interleav"),
        (lambda x: mb.reshape(x=x, shape=[0, 2, 12]), "reshape"),
        (lambda x: mb.slice_by_index(x=x, begin=[0, 0, 0], end=beyond(x)), "slice_by_index .* 0:9"),
    ],
    ids=["gelu", "layer_norm", "conv", "concat", "reshape", "slice_by_index"],
)
def test_an_unknown_mode_is_an_error(body: Any, cause: str, tmp_path: Path) -> None:
    package = saved(body, tmp_path)
    with pytest.raises(CheckFailed, match=cause):
        evaluated(package)


def test_an_input_that_core_ml_refuses(tmp_path: Path) -> None:
    package = saved(lambda x: mb.relu(x=x), tmp_path)
    with pytest.raises(CheckFailed, match=r"\(1, 4, 5\)"):
        evaluated(package, X[:, :, :5])


# --- Damage ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    body, _ = CASES["linear"]
    return saved(body, tmp_path_factory.mktemp("sound"))


@pytest.fixture
def package(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "copy.mlpackage"))


def files(package: Path) -> tuple[Path, Path]:
    """The model and its weights."""
    folder = package / "Data" / "com.apple.CoreML"
    return folder / "model.mlmodel", folder / "weights" / "weight.bin"


def test_a_single_weight_changes_the_result(package: Path) -> None:
    _, weights = files(package)
    content = bytearray(weights.read_bytes())
    at = content.index(WEIGHT.tobytes())
    content[at : at + 4] = struct.pack("<f", WEIGHT[0, 0] + 1)
    weights.write_bytes(content)
    change = evaluated(package) - (X @ WEIGHT.T + BIAS)
    np.testing.assert_allclose(change[..., 0], X[..., 0], atol=1e-5)
    np.testing.assert_allclose(change[..., 1:], 0, atol=1e-5)


def test_a_declaration_that_does_not_hold(package: Path) -> None:
    model, _ = files(package)
    spec = Model_pb2.Model()
    spec.ParseFromString(model.read_bytes())
    function = spec.mlProgram.functions["main"]
    (linear,) = (
        each
        for each in function.block_specializations[function.opset].operations
        if each.type == "linear"
    )
    linear.outputs[0].type.tensorType.dimensions[2].constant.size = 7
    model.write_bytes(spec.SerializeToString())
    with pytest.raises(CheckFailed, match=r"returns .*\(1, 4, 5\) and declares .*\(1, 4, 7\)"):
        evaluated(package)


def no_manifest(package: Path) -> None:
    (package / "Manifest.json").unlink()


def foreign_manifest(package: Path) -> None:
    (package / "Manifest.json").write_text(json.dumps({"rootModelIdentifier": "none"}))


def no_model(package: Path) -> None:
    files(package)[0].unlink()


def noise(package: Path) -> None:
    files(package)[0].write_bytes(b"\xff" * 100)


def no_program(package: Path) -> None:
    files(package)[0].write_bytes(Model_pb2.Model(specificationVersion=8).SerializeToString())


def no_weights(package: Path) -> None:
    files(package)[1].unlink()


def cut_weights(package: Path) -> None:
    weights = files(package)[1]
    weights.write_bytes(weights.read_bytes()[:150])


def other_weights(package: Path) -> None:
    weights = files(package)[1]
    weights.write_bytes(bytes(len(weights.read_bytes())))


@pytest.mark.parametrize(
    "damage",
    [
        *(no_manifest, foreign_manifest, no_model, noise, no_program),
        *(no_weights, cut_weights, other_weights),
    ],
)
def test_damage_is_an_error(damage: Callable[[Path], None], package: Path) -> None:
    damage(package)
    with pytest.raises(ArtifactError) as caught:
        Program(package)
    assert caught.value.exit_code == 2
    assert "Export the artifact again" in str(caught.value)
