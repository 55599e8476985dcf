"""The ExecuTorch artifact: the rewritten graph, quantization and delegation to XNNPACK."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from esrt.checkpoint import Checkpoint
from esrt.config import EncoderConfig, ModelConfig, QFormerConfig
from esrt.errors import CheckFailed
from esrt.hf_checkpoint import open_hf_checkpoint
from esrt.manifest import Precision
from esrt.model import EdgeModel
from esrt.wire import Split
from export.backends import get_recipe
from export.backends.xnnpack import delegation_report, lower
from export.backends.xnnpack.delegation_report import Summary
from export.backends.xnnpack.rewrite import XnnpackGraph
from export.backends.xnnpack.runner import load_runner
from export.checkpoint_source import open_source
from export.recipe import export
from tests.export.helpers import LENGTHS, MANIFEST, Exporter, all_but_linear, cosines, expected, mel
from tests.tiny_checkpoint import TINY

RECIPE = get_recipe("executorch")
# The form of the released models: padded, a fixed number of queries, heads of 64.
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


def random_model(config: ModelConfig) -> EdgeModel:
    """Random weights everywhere: layer norms and biases without effect would hide mistakes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EdgeModel(config).eval()
        for weights in model.parameters():
            torch.nn.init.normal_(
                weights, std=weights[0].numel() ** -0.5 if weights.ndim > 1 else 1
            )
    return model


# --- The graph that is lowered ----------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, PADDED], ids=["free length", "padded"])
@pytest.mark.parametrize("split", Split)
def test_the_rewritten_graph_equals_the_model(config: ModelConfig, split: Split) -> None:
    model = random_model(config)
    graph = XnnpackGraph(model, split)
    for frames in [200] if config.padded else LENGTHS:
        with torch.inference_mode():
            features = graph(torch.from_numpy(mel(frames))).numpy()
        reference = expected(model, mel(frames), split)
        np.testing.assert_allclose(features, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [TINY, PADDED], ids=["free length", "padded"])
def test_attention_in_float16_nearly_equals_the_model(config: ModelConfig) -> None:
    model = random_model(config)
    graph = XnnpackGraph(model, Split.QFORMER, half_attention=True)
    with torch.inference_mode():
        features = graph(torch.from_numpy(mel(200))).numpy()
    assert features.dtype == np.float32
    assert 1e-6 < np.abs(features - expected(model, mel(200))).max() < 0.02


# --- The artifact -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_xnnpack_takes_everything_but_the_tables(form: str, artifacts: Exporter) -> None:
    report = artifacts("executorch", form).report
    (line,) = (line for line in report.splitlines() if "delegation" in line)
    assert line.endswith("subgraphs: 1; portable kernels run: 2 floordiv, 4 slice_copy")


def test_a_released_checkpoint_to_the_projector_in_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EdgeModel(PADDED).eval()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "released").mkdir()
    save_file(model.state_dict(), tmp_path / "released" / "model.safetensors")
    out = tmp_path / "artifact"
    checkpoint = open_source("released")
    manifest = export(RECIPE, checkpoint, out, Precision.INT8, Split.ADAPTER).manifest
    assert (manifest.model, manifest.precision, manifest.split) == ("released", "int8", "adapter")
    assert manifest.fingerprint == open_hf_checkpoint(tmp_path / "released").fingerprint
    assert manifest.front_end.padded_seconds == 2.0
    assert manifest.inputs[0].shape == (1, 128, 200)
    assert manifest.outputs[0].shape == (1, 5, 64)
    features = load_runner(out / manifest.entry)(mel(200))
    reference = expected(model, mel(200), Split.ADAPTER)
    assert cosines(features, reference).min() > 0.97
    assert np.abs(features - reference).max() > 1e-6  # it is quantized


def test_one_length_in_int8(lively: Checkpoint, model: EdgeModel, tmp_path: Path) -> None:
    """The queries of a fixed length are constant, which XNNPACK does not quantize dynamically."""
    out = tmp_path / "artifact"
    exported = export(RECIPE, lively, out, Precision.INT8, Split.QFORMER, seconds=[1.5])
    manifest = exported.manifest
    features = load_runner(out / manifest.entry)(mel(152))
    assert cosines(features, expected(model, mel(152))).min() > 0.995


def test_small_weights_keep_their_precision() -> None:
    """The weights of wide layers are small, and the quantizer's smallest scale is too coarse."""
    torch.manual_seed(0)
    linear = torch.nn.Sequential(torch.nn.Linear(64, 64))
    with torch.no_grad():
        linear[0].weight.mul_(1e-3)
    values = torch.randn(1, 64)
    program = torch.export.export(linear, (values,))
    outputs = lower.quantize(program, [values[0].numpy()])(values)
    weights = linear(values) - linear[0].bias
    assert (outputs - linear(values)).square().mean() < 1e-3 * weights.square().mean()


# --- Failures ---------------------------------------------------------------------------------


def test_a_linear_layer_on_a_portable_kernel_fails_and_leaves_all_as_it_was(
    lively: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lower, "Partitioner", all_but_linear)
    out = tmp_path / "artifact"
    out.mkdir()
    (out / "manifest.json").write_bytes(MANIFEST)
    with pytest.raises(CheckFailed, match=r"does not take .*(linear|addmm)") as caught:
        export(RECIPE, lively, out, Precision.FP32, Split.QFORMER)
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


def test_a_program_for_shorter_speech_fails(artifacts: Exporter) -> None:
    path = artifacts("executorch", "fp32").path
    lower.check_longest_input(path, 400)
    with pytest.raises(CheckFailed, match="at most 400 frames, the model 408"):
        lower.check_longest_input(path, 408)
