"""The ONNX artifact, run by onnxruntime alone, against the checkpoint that it came from."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from esrt import wire
from esrt.arrays import Float32Array
from esrt.bundled import CHECKPOINT, REPOSITORY, SAMPLES
from esrt.checkpoint import Checkpoint, open_checkpoint, random_checkpoint, save_checkpoint
from esrt.errors import ArtifactError, CheckFailed
from esrt.manifest import Activations, Manifest, Precision, read_manifest
from esrt.model import EdgeModel
from esrt.wire import Split
from export import parity, quantization_error, to_onnx
from export.artifact import artifact_folder
from export.recipe import export
from export.to_onnx import RECIPE, export_onnx
from export.tracing import DeviceGraph
from tests.export.helpers import MANIFEST, cosines, expected, mel
from tests.tiny_checkpoint import TINY
from training import codec
from training.codec import RateTarget, Sample

PRECISIONS = ["fp32", "int8"]
# None of these was traced (the example has 20 blocks of 8 frames); 400 is the model's longest.
LENGTHS = [16, 24, 152, 168, 392, 400]


def run_command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, from some folder, with nothing set up for it."""
    script = REPOSITORY / "export" / "to_onnx.py"
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def fp32(lively: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(lively, "fp32", tmp_path_factory)


@pytest.fixture(scope="module")
def int8(lively: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(lively, "int8", tmp_path_factory)


def exported(checkpoint: Checkpoint, precision: str, temp: pytest.TempPathFactory) -> Path:
    work, out = temp.mktemp("work"), temp.mktemp(precision) / "new" / "artifact"
    done = run_command(
        *("--checkpoint", checkpoint.folder, "--precision", precision, "--out", out), cwd=work
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert checkpoint.fingerprint in done.stdout
    assert list(work.iterdir()) == []  # the exporters' scratch files are gone
    return out


@pytest.fixture(params=PRECISIONS)
def artifact(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def session(folder: Path) -> onnxruntime.InferenceSession:
    manifest = read_manifest(folder)
    path = str(folder / manifest.entry)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(folder: Path, values: Float32Array) -> Float32Array:
    return np.asarray(session(folder).run(["features"], {"mel": values})[0])


def test_shapes_follow_the_length(artifact: Path) -> None:
    running = session(artifact)
    for frames in LENGTHS:
        features = running.run(None, {"mel": mel(frames)})[0]
        assert features.shape == (1, frames // 8, 24)
        assert features.dtype == np.float32


def test_features_follow_the_speech(artifact: Path) -> None:
    assert (run(artifact, mel(160)) - run(artifact, mel(160, seed=1))).std() > 0.1


def test_fp32_equals_torch_at_lengths_that_were_not_traced(fp32: Path, model: EdgeModel) -> None:
    running = session(fp32)
    for frames in LENGTHS:
        found = running.run(None, {"mel": mel(frames)})[0]
        np.testing.assert_allclose(found, expected(model, mel(frames)), rtol=0, atol=1e-4)


def test_int8_is_close_to_torch_at_lengths_that_were_not_traced(
    int8: Path, model: EdgeModel
) -> None:
    running = session(int8)
    for frames in LENGTHS:
        found = running.run(None, {"mel": mel(frames)})[0]
        reference = expected(model, mel(frames))
        assert cosines(found, reference).min() > 0.97
        assert np.abs(found - reference).max() > 1e-4  # it is quantized indeed


def test_both_are_close_to_torch_on_real_speech(artifact: Path, model: EdgeModel) -> None:
    running = session(artifact)
    least = []
    for clip in parity.sample_mels(model.config):
        clip = clip[None, :, : model.config.max_frames]
        least.append(cosines(running.run(None, {"mel": clip})[0], expected(model, clip)).min())
    assert len(least) >= 12
    assert min(least) > 0.97


def _constant_float_products(graph: onnx.GraphProto) -> list[str]:
    """Matrix products in floating point by a weight that the file holds.

    Products of two dequantized inputs are int8: ONNX Runtime computes them so.
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


def test_the_int8_graph_multiplies_integers(int8: Path) -> None:
    graph = onnx.load(int8 / "model.onnx").graph
    integer = [node for node in graph.node if node.op_type == "MatMulInteger"]
    # q, k, v, out and two of the feed-forward in the encoder's layer; the same and a second
    # attention in the Q-Former's. k and v of one input may be merged, hence at least.
    assert len(integer) >= 12
    assert _constant_float_products(graph) == []
    weights = {t.name: t for t in graph.initializer}
    assert {weights[node.input[1]].data_type for node in integer} == {onnx.TensorProto.INT8}


def test_the_fp32_graph_does_not(fp32: Path) -> None:
    graph = onnx.load(fp32 / "model.onnx").graph
    assert "MatMulInteger" not in {node.op_type for node in graph.node}
    assert len(_constant_float_products(graph)) >= 12


def test_int8_linear_weights_take_a_quarter(fp32: Path, int8: Path) -> None:
    def bytes_of_matrices(folder: Path) -> int:
        graph = onnx.load(folder / "model.onnx").graph
        return sum(len(t.raw_data) for t in graph.initializer if len(t.dims) == 2)

    positions = 200 * 32 * 4  # the table of positions stays in fp32
    ratio = (bytes_of_matrices(int8) - positions) / (bytes_of_matrices(fp32) - positions)
    assert 0.2 < ratio < 0.3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_manifest_is_true(
    precision: str, lively: Checkpoint, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(precision)
    manifest = read_manifest(folder)
    content = (folder / "model.onnx").read_bytes()
    assert manifest.files == {"model.onnx": hashlib.sha256(content).hexdigest()}
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.onnx"]
    assert manifest.fingerprint == lively.fingerprint
    assert (manifest.model, manifest.created_from) == ("esrt-tiny", "lively")
    assert (manifest.kind, manifest.precision, manifest.split) == ("onnx", precision, "qformer")
    assert (manifest.feature_width, manifest.max_tokens) == (24, 50)
    assert manifest.languages == ("eng", "deu")
    assert msgspec.to_builtins(manifest.front_end) == {
        "sample_rate": 16_000,
        "n_fft": 400,
        "hop": 160,
        "mel_bins": 128,
        "frame_multiple": 8,
        "padded_seconds": None,
        "max_seconds": 4.0,
    }
    assert manifest.tools == {name: version(name) for name in manifest.tools}
    assert {"torch", "onnx", "onnxruntime"} <= manifest.tools.keys()
    clips = json.loads((SAMPLES / "index.json").read_text("utf-8"))
    assert manifest.parity["clips"] == len(clips)
    parity.check(manifest.parity, parity.BOUNDS[manifest.precision])


def test_the_manifest_describes_the_graphs_ends(artifact: Path) -> None:
    manifest, running = read_manifest(artifact), session(artifact)
    for specs, values in (
        (manifest.inputs, running.get_inputs()),
        (manifest.outputs, running.get_outputs()),
    ):
        (spec,), (value,) = specs, values
        assert spec.name == value.name
        assert spec.dtype == "float32"
        assert value.type == "tensor(float)"
        free = tuple(size if isinstance(size, int) else None for size in value.shape)
        assert spec.shape == free


def export_fp32(checkpoint: Checkpoint, out: Path, split: str = "qformer") -> Manifest:
    return export_onnx(
        checkpoint, out, Precision.FP32, "adapter" if split == "adapter" else "qformer"
    )


def test_the_adapter_split_ends_in_the_decoders_width(
    lively: Checkpoint, model: EdgeModel, tmp_path: Path
) -> None:
    manifest = export_fp32(lively, tmp_path / "adapter", "adapter")
    assert (manifest.split, manifest.feature_width) == ("adapter", 64)
    assert manifest.outputs[0].shape == (1, None, 64)
    found = run(tmp_path / "adapter", mel(88))
    with torch.inference_mode():
        reference = model(torch.from_numpy(mel(88))).numpy()
    assert found.shape == (1, 11, 64)
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-4)


def test_padded_models_have_one_length(lively: Checkpoint, tmp_path: Path) -> None:
    config = dataclasses.replace(
        lively.config,
        encoder=dataclasses.replace(lively.config.encoder, max_positions=100),
        q_former=dataclasses.replace(lively.config.q_former, queries=5, stride=None, overlap=0),
        padded=True,
        max_seconds=2.0,
    )
    torch.manual_seed(0)

    class NoFiles:
        """Stands for a decoder and a tokenizer, which export does not read."""

        def to(self, _: torch.dtype) -> "NoFiles":
            return self

        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text("{}")

    model = EdgeModel(config).eval()
    checkpoint = save_checkpoint(tmp_path / "padded", model, NoFiles(), NoFiles(), torch.float32)  # type: ignore[arg-type]
    manifest = export_fp32(checkpoint, tmp_path / "artifact")
    assert manifest.inputs[0].shape == (1, 128, 200)
    assert manifest.outputs[0].shape == (1, 5, 24)
    assert manifest.front_end.padded_seconds == 2.0
    running = session(tmp_path / "artifact")
    assert running.get_inputs()[0].shape == [1, 128, 200]
    found = running.run(None, {"mel": mel(200)})[0]
    np.testing.assert_allclose(found, expected(model, mel(200)), rtol=0, atol=1e-4)


def test_the_shipped_model_keeps_its_features_in_int8(tmp_path: Path) -> None:
    nano = open_checkpoint(CHECKPOINT)
    manifest = export_onnx(nano, tmp_path / "nano", Precision.INT8, "qformer")
    assert manifest.fingerprint == nano.fingerprint
    assert manifest.parity["cosine_min"] > 0.97
    assert manifest.parity["cosine_mean"] > 0.99
    assert run(tmp_path / "nano", mel(1200)).shape == (1, 150, 192)


# --- Failures -------------------------------------------------------------------------------------


def test_a_failed_check_leaves_nothing(
    lively: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.BOUNDS, "fp32", parity.Bounds(cosine=1.1, error=0.0))
    with pytest.raises(CheckFailed, match=r"cosine") as caught:
        export_fp32(lively, tmp_path / "artifact")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_leaves_an_existing_artifact_untouched(
    lively: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "artifact"
    out.mkdir()
    (out / "manifest.json").write_bytes(MANIFEST)
    monkeypatch.setitem(parity.BOUNDS, "fp32", parity.Bounds(cosine=1.1, error=0.0))
    with pytest.raises(CheckFailed):
        export_fp32(lively, out)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"manifest.json": MANIFEST}


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
@pytest.mark.parametrize("precision", PRECISIONS)
def test_figures_out_of_bounds_fail(figures: dict[str, float], precision: str) -> None:
    with pytest.raises(CheckFailed):
        parity.check(figures, parity.BOUNDS["fp32" if precision == "fp32" else "int8"])


def test_a_graph_of_another_model_fails_parity(fp32: Path, model: EdgeModel) -> None:
    """The bounds can tell: the artifact against weights that are slightly off."""
    other = EdgeModel(model.config)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights["encoder.layers.0.fc1.weight"] *= 1.05
    other.load_state_dict(weights)
    running = session(fp32)
    figures = parity.measure(
        DeviceGraph(other, "qformer"), lambda values: running.run(None, {"mel": values})[0]
    )
    with pytest.raises(CheckFailed):
        parity.check(figures, parity.BOUNDS["fp32"])


def test_a_missing_checkpoint_ends_with_2_and_one_line(tmp_path: Path) -> None:
    done = run_command(
        *("--checkpoint", tmp_path / "nowhere", "--out", tmp_path / "artifact"), cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "nowhere" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["a folder with other things", "a file", "a web page"])
def test_nothing_but_an_artifact_is_replaced(lively: Checkpoint, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    thesis = out if what == "a file" else out / "thesis.txt"
    thesis.parent.mkdir(exist_ok=True)
    thesis.write_text("years of work")
    if what == "a web page":
        (out / "manifest.json").write_text('{"name": "page", "start_url": "."}')
    done = run_command("--checkpoint", lively.folder, "--out", out, cwd=tmp_path)
    assert done.returncode == 2
    assert "is not an artifact" in done.stderr
    assert "Traceback" not in done.stderr
    assert thesis.read_text() == "years of work"


@pytest.mark.parametrize("out", [".", "link"])
def test_an_artifact_is_replaced_by_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "manifest.json").write_bytes(MANIFEST)
    (tmp_path / "artifact" / "link").symlink_to(tmp_path / "artifact")
    monkeypatch.chdir(tmp_path / "artifact")
    with artifact_folder(Path(out)) as folder:
        (folder / "new").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert [path.name for path in (tmp_path / "artifact").iterdir()] == ["new"]


# --- Precisions, lengths and ranges -----------------------------------------------------------


def test_fp16_keeps_float32_at_its_ends(
    lively: Checkpoint, model: EdgeModel, tmp_path: Path
) -> None:
    manifest = export_onnx(lively, tmp_path / "half", Precision.FP16, "qformer")
    assert manifest.precision == "fp16"
    graph = onnx.load(tmp_path / "half" / "model.onnx").graph
    large = [tensor for tensor in graph.initializer if len(tensor.dims) > 1]
    assert {tensor.data_type for tensor in large} == {onnx.TensorProto.FLOAT16}
    found, reference = run(tmp_path / "half", mel(152)), expected(model, mel(152))
    assert found.dtype == np.float32
    assert 1e-5 < np.abs(found - reference).max() < 0.1


def test_fixed_ranges_come_from_speech(
    lively: Checkpoint, model: EdgeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Static int8, with one layer that is said to hurt."""
    layer = "model.encoder.layers.0.fc2"
    monkeypatch.setattr(quantization_error, "hurt", lambda _: (layer,))
    out = tmp_path / "static"
    settings = (lively, out, Precision.INT8, "qformer")
    manifest = export(RECIPE, *settings, activations=Activations.STATIC).manifest
    assert manifest.quantization is not None
    assert manifest.quantization.activations == "static"
    assert manifest.quantization.kept == (layer,)
    assert layer in manifest.quantization.errors
    graph = onnx.load(out / "model.onnx").graph
    assert len(_constant_float_products(graph)) == 1
    assert "DynamicQuantizeLinear" not in {node.op_type for node in graph.node}
    clip = next(parity.sample_mels(model.config))[None, :, : model.config.max_frames]
    assert cosines(run(out, clip), expected(model, clip)).min() > 0.97


@pytest.mark.parametrize("split", ["qformer", "adapter"])
def test_the_codecs_statistics_go_with_the_features_they_describe(
    lively: Checkpoint, tmp_path: Path, split: Split
) -> None:
    shutil.copytree(lively.folder, tmp_path / "checkpoint")
    checkpoint = open_checkpoint(tmp_path / "checkpoint")
    random = np.random.default_rng(0)
    sample = Sample(
        [random.normal(size=(20, 24)).astype(np.float32)] * 5, random.normal(size=(100, 24)), 1.0
    )
    tables = codec.fit(sample, RateTarget(0.2, 0.1), 8)
    codec.write(checkpoint, wire.Split.QFORMER, {wire.Codec.KLT: tables})
    out = tmp_path / split
    manifest = export(RECIPE, checkpoint, out, Precision.FP32, split).manifest
    if split == "adapter":
        assert set(manifest.files) == {"model.onnx"}
        return
    assert set(manifest.files) == {"model.onnx", wire.CODEC_TABLES_FILE}
    copied = wire.read_codec_tables(out / wire.CODEC_TABLES_FILE, manifest.fingerprint)
    expected = checkpoint.codec_tables()
    assert expected is not None and copied.identity == expected.identity


def test_int8_reaches_the_layers_of_a_padded_model(tmp_path: Path) -> None:
    """A fixed length makes Gemm nodes of linear layers, and onnxruntime rewrites those first."""
    q_former = dataclasses.replace(TINY.q_former, queries=5, stride=None, overlap=0)
    config = dataclasses.replace(TINY, q_former=q_former, padded=True)
    out = tmp_path / "padded"
    export(RECIPE, random_checkpoint(config), out, Precision.INT8, "qformer")
    graph = onnx.load(out / "model.onnx").graph
    integer = [node for node in graph.node if node.op_type == "MatMulInteger"]
    # Six in the encoder's layer; in the Q-Former's all that hangs on the speech: k, v and out of
    # the second attention and two of the feed-forward.
    assert len(integer) == 11


@pytest.mark.parametrize("precision", Precision)
def test_weights_that_one_file_cannot_hold_lie_beside_it(
    lively: Checkpoint,
    model: EdgeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
) -> None:
    """As at full size, whose float weights pass protobuf's limit; fp16 and int8 ones do not."""
    monkeypatch.setattr(to_onnx, "_ONE_FILE_BYTES", 1000)
    out = tmp_path / "large"
    manifest = export(RECIPE, lively, out, precision, "qformer").manifest
    weights = {"model.onnx.data"} if precision is Precision.FP32 else set()
    assert set(manifest.files) == {"model.onnx"} | weights
    assert {path.name for path in out.iterdir()} == {"model.onnx", "manifest.json"} | weights
    values = mel(400)
    assert cosines(run(out, values), expected(model, values)).min() > 0.99


def test_one_length_fixes_the_shape_and_pads(lively: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "fixed"
    manifest = export(RECIPE, lively, out, Precision.FP32, "qformer", seconds=[1.5]).manifest
    assert manifest.lengths == (1.52,)
    assert (manifest.front_end.padded_seconds, manifest.front_end.max_seconds) == (1.52, 1.52)
    assert manifest.inputs[0].shape == (1, 128, 152)
    assert (manifest.outputs[0].shape, manifest.max_tokens) == ((1, 19, 24), 19)
    assert session(out).get_inputs()[0].shape == [1, 128, 152]
    assert read_manifest(out) == manifest


def test_several_lengths_bound_the_shape(
    lively: Checkpoint, model: EdgeModel, tmp_path: Path
) -> None:
    out = tmp_path / "several"
    manifest = export(RECIPE, lively, out, Precision.FP32, "qformer", seconds=[3, 1]).manifest
    assert manifest.lengths == (1.04, 3.04)
    assert (manifest.front_end.padded_seconds, manifest.front_end.max_seconds) == (None, 3.04)
    assert manifest.inputs[0].shape == (1, 128, None)
    for frames in (104, 304):
        np.testing.assert_allclose(
            run(out, mel(frames)), expected(model, mel(frames)), rtol=0, atol=1e-4
        )


def test_activations_that_are_not_offered(lively: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"dynamic, static"):
        export(
            RECIPE,
            lively,
            tmp_path / "x",
            Precision.INT8,
            "qformer",
            activations=Activations.FLOAT,
        )
