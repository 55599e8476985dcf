"""Small checkpoints in the released format: loading, and errors that name tensors or files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from esrt.checkpoint import fingerprint
from esrt.config import CONFIGS, EncoderConfig, ModelConfig, QFormerConfig
from esrt.errors import CheckpointError
from esrt.hf_checkpoint import _config, is_hf_checkpoint, open_hf_checkpoint
from esrt.languages import LANGUAGES
from esrt.model import EdgeModel

SMALL = ModelConfig(
    name="small",
    encoder=EncoderConfig(width=128, layers=2, heads=2, inner_width=96, max_positions=100),
    q_former=QFormerConfig(width=64, layers=2, heads=1, inner_width=80, queries=5),
    decoder_width=32,
    projector_width=48,
    padded=True,
    max_seconds=2.0,
    languages=tuple(LANGUAGES),
)
Tensors = dict[str, Tensor]


def decoder_config() -> Gemma3TextConfig:
    return Gemma3TextConfig(
        vocab_size=40,
        hidden_size=SMALL.decoder_width,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )


def rounded(model: Any) -> Any:
    """The model with weights rounded to bfloat16, the type of the released weights."""
    for weights in model.parameters():
        weights.data = weights.data.to(torch.bfloat16).float()
    return model.eval()


@pytest.fixture(scope="module")
def edge() -> EdgeModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: EdgeModel = rounded(EdgeModel(SMALL))
        return model


@pytest.fixture(scope="module")
def llm() -> Gemma3ForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return rounded(Gemma3ForCausalLM(decoder_config()))


@pytest.fixture
def tensors(edge: EdgeModel, llm: Gemma3ForCausalLM) -> Tensors:
    """Tensors with the released names and type; files store only one of two tied tensors."""
    named = {
        **edge.state_dict(),
        **{f"llm.{name}": tensor for name, tensor in llm.state_dict().items()},
    }
    del named["llm.lm_head.weight"]
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in named.items()}


def write_one(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "esrt", "auto_map": {"AutoModel": "m.M"}}')
    return folder


def write_shards(
    folder: Path, tensors: Tensors, change: Callable[[Any], Any] = lambda m: m
) -> Path:
    folder.mkdir(exist_ok=True)
    names = [f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)]
    where = {name: names[k % 3] for k, name in enumerate(tensors)}
    for shard in names:
        save_file({n: t for n, t in tensors.items() if where[n] == shard}, folder / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": change(where)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


WRITERS = pytest.mark.parametrize("write", [write_one, write_shards], ids=["one file", "shards"])


@WRITERS
def test_the_model_is_loaded(
    write: Callable[[Path, Tensors], Path], tensors: Tensors, edge: EdgeModel, tmp_path: Path
) -> None:
    folder = write(tmp_path / "small", tensors)
    assert is_hf_checkpoint(folder)
    released = open_hf_checkpoint(folder)
    assert released.config == SMALL
    model = released.edge_model()
    assert not model.training
    assert model.q_former.query.dtype == torch.float32
    mel = torch.randn(1, 128, 200)
    with torch.inference_mode():
        torch.testing.assert_close(model(mel), edge(mel), rtol=0, atol=0)


def test_the_fingerprint_is_that_of_the_edge_weights_alone(
    tensors: Tensors, tmp_path: Path
) -> None:
    one = open_hf_checkpoint(write_one(tmp_path / "small", tensors))
    shards = open_hf_checkpoint(write_shards(tmp_path / "other-name", tensors))
    own = {name: t for name, t in tensors.items() if not name.startswith("llm.")}
    save_file(own, tmp_path / "edge.safetensors")
    alone = open_hf_checkpoint(write_one(tmp_path / "alone", own))
    expected = fingerprint(SMALL, tmp_path / "edge.safetensors")
    assert one.fingerprint == shards.fingerprint == alone.fingerprint == expected
    own["mlp.norm.bias"] = own["mlp.norm.bias"] + 1
    assert open_hf_checkpoint(write_one(tmp_path / "changed", own)).fingerprint != expected


def test_the_decoder_may_be_missing(tensors: Tensors, tmp_path: Path) -> None:
    own = {name: t for name, t in tensors.items() if not name.startswith("llm.")}
    released = open_hf_checkpoint(write_one(tmp_path / "small", own))
    assert released.config == SMALL


@pytest.mark.parametrize("name", ["esrt-4b", "esrt-12b"])
def test_full_size_is_recognized_by_its_shapes(name: str) -> None:
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in EdgeModel(CONFIGS[name]).state_dict().items()}
    assert _config(shapes, "downloaded") == CONFIGS[name]


def test_no_code_of_the_folder_runs(tensors: Tensors, tmp_path: Path) -> None:
    folder = write_one(tmp_path / "small", tensors)
    (folder / "m.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass M: pass\n")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    open_hf_checkpoint(folder).edge_model()
    assert not (tmp_path / "ran").exists()


# --- Refusals ---------------------------------------------------------------------------------


def drop(*names: str) -> Callable[[Tensors], None]:
    return lambda tensors: [tensors.pop(name) for name in names] and None


def put(name: str, *shape: int) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


Q = "q_former.qformer.encoder.layer"


@WRITERS
@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (drop("mlp.norm.bias", "encoder.conv2.bias"), ["mlp.norm.bias is missing",
                                                       "encoder.conv2.bias is missing"]),
        (drop("q_former.query"), ["q_former.query is missing"]),
        (drop(f"{Q}.1.crossattention.attention.key.weight"),
         [f"{Q}.1.crossattention.attention.key.weight is missing"]),
        (put("encoder.extra", 1), ["encoder.extra is unexpected"]),
        (put("vision.weight", 1), ["vision.weight is unexpected"]),
        (put("encoder.layers.999999999.fc1.bias", 96),
         ["encoder.layers.999999999.fc1.bias is unexpected"]),
        (put("mlp.linear1.bias", 47), ["mlp.linear1.bias has shape (47,) instead of (48,)"]),
        (put("encoder.layers.1.fc1.weight", 95, 128),
         ["encoder.layers.1.fc1.weight has shape (95, 128) instead of (96, 128)"]),
        (put("q_former.query", 5, 64), ["q_former.query has shape (5, 64)"]),
        (put("llm.model.embed_tokens.weight", 40, 33), ["llm.model.embed_tokens.weight", "32"]),
    ],
)  # fmt: skip
def test_wrong_tensors_are_listed(
    write: Callable[[Path, Tensors], Path],
    change: Callable[[Tensors], None],
    problems: list[str],
    tensors: Tensors,
    tmp_path: Path,
) -> None:
    change(tensors)
    with pytest.raises(CheckpointError) as caught:
        open_hf_checkpoint(write(tmp_path / "small", tensors))
    for problem in problems:
        assert problem in str(caught.value)


def test_a_shard_that_is_missing(tensors: Tensors, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "small", tensors)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        open_hf_checkpoint(folder)


def test_a_file_that_is_cut_off(tensors: Tensors, tmp_path: Path) -> None:
    folder = write_one(tmp_path / "small", tensors)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="damaged"):
        open_hf_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: {**m, "mlp.norm.bias": "../model.safetensors"}, "outside of the folder"),
        (lambda m: {**m, "mlp.norm.bias": "/etc/passwd"}, "outside of the folder"),
        (lambda m: {**m, "mlp.norm.bias": 3}, "no weight_map"),
        (lambda m: list(m), "no weight_map"),
        (lambda m: {**m, "mlp.other": m["mlp.norm.bias"]}, "mlp.other is missing"),
        (lambda m: {k: v for k, v in m.items() if k != "mlp.norm.bias"}, "mlp.norm.bias is unexp"),
        (lambda m: {**m, "mlp.norm.bias": m["mlp.norm.weight"]}, "wrong files of mlp.norm.bias"),
    ],
)
def test_an_index_that_does_not_fit_its_shards(
    change: Callable[[Any], Any], problem: str, tensors: Tensors, tmp_path: Path
) -> None:
    folder = write_shards(tmp_path / "small", tensors, change)
    with pytest.raises(CheckpointError, match=problem):
        open_hf_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"weight_map": null}'], ids=len)
def test_an_invalid_index(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="damaged"):
        open_hf_checkpoint(tmp_path)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"...")
    assert not is_hf_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_hf_checkpoint(tmp_path)
