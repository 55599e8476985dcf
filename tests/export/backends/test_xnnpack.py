"""The ExecuTorch artifact, run by ExecuTorch's runtime alone, against its checkpoint."""

import hashlib
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executorch.runtime import Runtime
from safetensors.torch import save_file

from esrt.bundled import REPOSITORY, SAMPLES
from esrt.checkpoint import Checkpoint
from esrt.config import EncoderConfig, ModelConfig, QFormerConfig
from esrt.errors import CheckFailed
from esrt.hf_checkpoint import open_hf_checkpoint
from esrt.manifest import Activations, Precision, read_manifest
from esrt.model import EdgeModel
from export import parity, quantization_error
from export.backends.xnnpack import delegation_report, inspect, lower
from export.backends.xnnpack.delegation_report import Summary
from export.backends.xnnpack.rewrite import XnnpackEncoder
from export.recipe import Exported, export
from export.to_executorch import RECIPE, export_executorch
from tests.export.helpers import MANIFEST, all_but_linear, cosines, expected, mel
from tests.tiny_checkpoint import TINY

# None of these is the example's (392); 400 is the model's longest, and one block the shortest.
LENGTHS = [8, 16, 24, 152, 168, 400]
# Of the released models' form: padded, a fixed number of queries, heads of 64.
PADDED = ModelConfig(
    name="padded",
    encoder=EncoderConfig(width=64, layers=1, heads=1, inner_width=96, max_positions=100),
    q_former=QFormerConfig(width=128, layers=2, heads=2, inner_width=96, queries=5),
    decoder_width=64,
    projector_width=48,
    padded=True,
    max_seconds=2.0,
    languages=("eng", "deu"),
)


@pytest.fixture(scope="module")
def fp32(lively: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    out = tmp_path_factory.mktemp("fp32") / "artifact"
    return out, export(RECIPE, lively, out, Precision.FP32, "qformer")


@pytest.fixture(scope="module")
def int8(lively: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The artifact of the command, and what it printed."""
    out = tmp_path_factory.mktemp("int8") / "new" / "artifact"
    work = tmp_path_factory.mktemp("work")
    done = run_command("--checkpoint", lively.folder, "--precision", "int8", "--out", out, cwd=work)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(work.iterdir()) == []
    return out, done.stdout


def run_command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, from some folder, with nothing set up for it."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "export" / "to_executorch.py"), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(params=["fp32", "int8"])
def artifact(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)[0]
    return path


def runner(folder: Path) -> parity.Runner:
    manifest = read_manifest(folder)
    program = Runtime.get().load_program(folder / manifest.entry)
    method = program.load_method("forward")
    return lambda values: (program, method.execute([torch.from_numpy(values)])[0].numpy())[1]


# --- The graph that is lowered ----------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, PADDED], ids=["free length", "padded"])
@pytest.mark.parametrize("split", ["qformer", "adapter"])
def test_the_delegable_graph_is_the_model(config: ModelConfig, split: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EdgeModel(config).eval()
        for weights in model.parameters():  # layer norms and biases that do nothing hide mistakes
            torch.nn.init.normal_(
                weights, std=weights[0].numel() ** -0.5 if weights.ndim > 1 else 1
            )
    graph = XnnpackEncoder(model, split)
    for frames in [200] if config.padded else LENGTHS:
        values = torch.from_numpy(mel(frames))
        with torch.inference_mode():
            reference = model.features(values) if split == "qformer" else model(values)
            torch.testing.assert_close(graph(values), reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [TINY, PADDED], ids=["free length", "padded"])
def test_attention_in_float16_is_the_model_nearly(config: ModelConfig) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EdgeModel(config).eval()
        for weights in model.parameters():
            torch.nn.init.normal_(
                weights, std=weights[0].numel() ** -0.5 if weights.ndim > 1 else 1
            )
    graph = XnnpackEncoder(model, "qformer", half_attention=True)
    values = torch.from_numpy(mel(200))
    with torch.inference_mode():
        found, reference = graph(values), model.features(values)
    assert found.dtype == torch.float32
    assert 1e-6 < (found - reference).abs().max() < 0.02


# --- The artifact -----------------------------------------------------------------------------


def test_shapes_follow_the_length(artifact: Path) -> None:
    run = runner(artifact)
    for frames in LENGTHS:
        features = run(mel(frames))
        assert features.shape == (1, frames // 8, 24)
        assert features.dtype == np.float32


def test_features_follow_the_speech(artifact: Path) -> None:
    run = runner(artifact)
    assert (run(mel(160)) - run(mel(160, seed=1))).std() > 0.1


def test_fp32_equals_torch(fp32: tuple[Path, Exported], model: EdgeModel) -> None:
    run = runner(fp32[0])
    for frames in LENGTHS:
        np.testing.assert_allclose(run(mel(frames)), expected(model, mel(frames)), atol=1e-4)


def test_int8_is_close_to_torch(int8: tuple[Path, str], model: EdgeModel) -> None:
    run = runner(int8[0])
    for frames in LENGTHS:
        found, reference = run(mel(frames)), expected(model, mel(frames))
        assert cosines(found, reference).min() > 0.97
        assert np.abs(found - reference).max() > 1e-4  # it is quantized indeed


def test_xnnpack_takes_everything_but_the_tables(fp32: tuple[Path, Exported]) -> None:
    ((label, text),) = fp32[1].notes
    assert label == "delegation"
    assert "in 1 XNNPACK subgraphs; outside: 2 floordiv, 4 slice_copy" in text


def test_the_report_says_what_was_delegated(int8: tuple[Path, str], lively: Checkpoint) -> None:
    assert lively.fingerprint in int8[1]
    (line,) = (line for line in int8[1].splitlines() if "delegation" in line)
    assert line.endswith("outside: 2 floordiv, 4 slice_copy")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_manifest_is_true(
    precision: str, lively: Checkpoint, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(precision)[0]
    manifest = read_manifest(folder)
    content = (folder / "model.pte").read_bytes()
    assert manifest.files == {"model.pte": hashlib.sha256(content).hexdigest()}
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.pte"]
    assert (manifest.kind, manifest.entry) == ("executorch", "model.pte")
    assert (manifest.precision, manifest.split) == (precision, "qformer")
    assert manifest.fingerprint == lively.fingerprint
    assert (manifest.feature_width, manifest.max_tokens) == (24, 50)
    assert manifest.inputs[0].shape == (1, 128, None)
    assert manifest.outputs[0].shape == (1, None, 24)
    assert manifest.tools == {name: version(name) for name in manifest.tools}
    assert {"torch", "torchao", "executorch"} <= manifest.tools.keys()
    clips = json.loads((SAMPLES / "index.json").read_text("utf-8"))
    assert manifest.parity["clips"] == len(clips)
    parity.check(manifest.parity, parity.BOUNDS[manifest.precision])


def test_a_released_checkpoint_to_the_projector_in_int8(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EdgeModel(PADDED).eval()
    (tmp_path / "released").mkdir()
    save_file(model.state_dict(), tmp_path / "released" / "model.safetensors")
    done = run_command(
        *("--checkpoint", "released", "--split", "adapter", "--out", "artifact"), cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = read_manifest(tmp_path / "artifact")
    assert (manifest.model, manifest.precision, manifest.split) == ("released", "int8", "adapter")
    assert manifest.fingerprint == open_hf_checkpoint(tmp_path / "released").fingerprint
    assert manifest.front_end.padded_seconds == 2.0
    assert manifest.inputs[0].shape == (1, 128, 200)
    assert manifest.outputs[0].shape == (1, 5, 64)
    found = runner(tmp_path / "artifact")(mel(200))
    with torch.inference_mode():
        reference = model(torch.from_numpy(mel(200))).numpy()
    assert cosines(found, reference).min() > 0.97
    assert np.abs(found - reference).max() > 1e-6  # it is quantized indeed


# --- Precisions, lengths and ranges -----------------------------------------------------------


def test_fp16_keeps_float32_at_its_ends(
    lively: Checkpoint, model: EdgeModel, tmp_path: Path
) -> None:
    manifest = export_executorch(lively, tmp_path / "half", Precision.FP16, "qformer")
    assert manifest.precision == "fp16"
    found, reference = runner(tmp_path / "half")(mel(152)), expected(model, mel(152))
    assert found.dtype == np.float32
    assert 1e-5 < np.abs(found - reference).max() < 0.1


def test_fixed_ranges_come_from_speech(
    lively: Checkpoint, model: EdgeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Static int8 of one length, with one layer that is said to hurt."""
    layer = "encoder.layers.0.fc2"
    monkeypatch.setattr(quantization_error, "hurt", lambda _: (layer,))
    out = tmp_path / "static"
    settings = (lively, out, Precision.INT8, "qformer")
    done = export(RECIPE, *settings, seconds=[1.5], activations=Activations.STATIC)
    manifest = done.manifest
    assert manifest.quantization is not None
    assert manifest.quantization.activations == "static"
    assert manifest.quantization.kept == (layer,)
    assert layer in manifest.quantization.errors
    assert manifest.lengths == (1.52,)
    assert manifest.inputs[0].shape == (1, 128, 152)
    inspection = inspect.inspect(out / "model.pte", manifest, mel(152)[0])
    linear = [operation for operation in inspection.operations if operation.linear]
    assert sum(not operation.integer for operation in linear) == 1
    (clip, *_) = parity.sample_mels(model.config, (152,))
    found, reference = runner(out)(clip[None]), expected(model, clip[None])
    assert cosines(found, reference).min() > 0.97


def test_small_weights_keep_their_precision() -> None:
    """Of wide layers the weights are small, and the quantizer's own least scale is too coarse."""
    torch.manual_seed(0)
    linear = torch.nn.Sequential(torch.nn.Linear(64, 64))
    with torch.no_grad():
        linear[0].weight.mul_(1e-3)
    values = torch.randn(1, 64)
    program = torch.export.export(linear, (values,))
    found = lower.quantized(program, [values[0].numpy()])(values)
    weights = linear(values) - linear[0].bias
    assert (found - linear(values)).square().mean() < 1e-3 * weights.square().mean()


# --- Failures ---------------------------------------------------------------------------------


def test_a_linear_layer_on_a_portable_kernel_fails_and_leaves_all_as_it_was(
    lively: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lower, "Partitioner", all_but_linear)
    out = tmp_path / "artifact"
    out.mkdir()
    (out / "manifest.json").write_bytes(MANIFEST)
    with pytest.raises(CheckFailed, match=r"does not take .*(linear|addmm)") as caught:
        export_executorch(lively, out, Precision.FP32, "qformer")
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"manifest.json": MANIFEST}


@pytest.mark.parametrize("product", sorted(delegation_report.PRODUCTS))
def test_every_product_outside_fails(product: str) -> None:
    with pytest.raises(CheckFailed, match=f"3 {product}"):
        delegation_report.check(
            Summary(1, {"add": 9}, {product: 3, "slice_copy": 1}, 0), Precision.FP32
        )


def test_an_int8_program_with_a_float_linear_layer_fails() -> None:
    summary = Summary(subgraphs=1, inside={"linear": 9}, outside={}, float_linears=2)
    delegation_report.check(summary, Precision.FP32)
    with pytest.raises(CheckFailed, match="2 linear layers"):
        delegation_report.check(summary, Precision.INT8)


def test_a_program_for_shorter_speech_fails(fp32: tuple[Path, Exported]) -> None:
    with pytest.raises(CheckFailed, match="at most 400 frames, the model 408"):
        lower.runner(fp32[0] / "model.pte", 408)
