"""Capacity: the arithmetic against the weights of a real decoder, and the command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from cloud_vllm.capacity import GEMMA, compute_capacity, read_shape
from esrt.bundled import CHECKPOINT, REPOSITORY
from esrt.checkpoint import open_checkpoint
from esrt.errors import CheckpointError


def test_parameters_are_those_of_the_weights() -> None:
    from safetensors import safe_open

    with safe_open(open_checkpoint(CHECKPOINT).decoder / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    matrices = sum(tensor.numel() for tensor in tensors if tensor.dim() == 2)
    assert read_shape(str(CHECKPOINT)).parameters == matrices


def test_cache_bytes_are_those_of_the_configuration() -> None:
    config = AutoConfig.from_pretrained(CHECKPOINT / "decoder")
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    assert read_shape(str(CHECKPOINT)).cache_bytes() == 2 * layers * heads * config.head_dim * 2


@pytest.mark.parametrize(
    ("name", "billions", "kib"), [("gemma-3-4b", 3.9, 136), ("gemma-3-12b", 11.8, 384)]
)
def test_published_configurations(name: str, billions: float, kib: int) -> None:
    assert GEMMA[name].parameters / 1e9 == pytest.approx(billions, abs=0.05)
    assert GEMMA[name].cache_bytes() == kib * 1024


def test_concurrent_answers() -> None:
    options = {"gpu_gib": 80.0, "gpus": 1, "fp8": False, "reserve_gib": 4.0, "max_tokens": 338}
    small, large = (
        compute_capacity(GEMMA[name], **options) for name in ("gemma-3-4b", "gemma-3-12b")
    )
    assert small.max_concurrent > large.max_concurrent > 0
    assert compute_capacity(GEMMA["gemma-3-12b"], **options | {"gpu_gib": 16.0}).max_concurrent == 0
    assert (
        compute_capacity(GEMMA["gemma-3-12b"], **options | {"fp8": True}).weights_gib
        < large.weights_gib
    )
    spread = compute_capacity(GEMMA["gemma-3-12b"], **options | {"gpus": 2})
    assert spread.max_concurrent > 2 * large.max_concurrent


def test_the_text_part_of_a_multimodal_configuration(tmp_path: Path) -> None:
    shape = GEMMA["gemma-3-4b"]
    (tmp_path / "config.json").write_text(json.dumps({"text_config": vars(shape)}))
    assert read_shape(str(tmp_path)) == shape


def test_a_folder_without_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no Gemma 3 decoder"):
        read_shape(str(tmp_path))


def test_the_command() -> None:
    command = [sys.executable, "-m", "cloud_vllm.capacity", "gemma-3-4b", "--tokens-per-s", "3000"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "136.0 KiB" in done.stdout
    assert "50.0" in done.stdout
