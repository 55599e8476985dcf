"""Checkpoints on disk: saving, loading, fingerprints, and damaged files."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, Gemma3ForCausalLM

from esrt.checkpoint import Checkpoint, fingerprint, open_checkpoint, save_checkpoint
from esrt.errors import CheckpointError
from tests.tiny_checkpoint import TINY

Change = Callable[[dict[str, Tensor]], None]


def rewrite(checkpoint: Checkpoint, change: Change) -> Checkpoint:
    """Change the edge weights of a checkpoint, and open it again."""
    path = checkpoint.folder / "edge.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return open_checkpoint(checkpoint.folder)


def saved_again(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype) -> Checkpoint:
    return save_checkpoint(
        folder,
        checkpoint.edge_model(),
        Gemma3ForCausalLM.from_pretrained(checkpoint.decoder),
        AutoTokenizer.from_pretrained(checkpoint.decoder),
        dtype,
    )


def test_a_checkpoint_survives_saving(tiny: Checkpoint, tmp_path: Path) -> None:
    again = saved_again(tiny, tmp_path / "again", torch.float32)
    assert again.config == TINY
    assert again.fingerprint == tiny.fingerprint == open_checkpoint(again.folder).fingerprint
    expected, found = tiny.edge_model(), again.edge_model()
    assert not found.training
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    mel = torch.randn(1, 128, 80)
    with torch.inference_mode():
        assert torch.equal(found(mel), expected(mel))
        features = found.features(mel)
        assert torch.equal(again.projector()(features), expected(mel))
    decoders = [Gemma3ForCausalLM.from_pretrained(c.decoder).state_dict() for c in (tiny, again)]
    assert all(torch.equal(decoders[0][name], decoders[1][name]) for name in decoders[0])
    text = "grüße <|eng|><|deu|>新西兰"
    ids = [AutoTokenizer.from_pretrained(c.decoder)(text).input_ids for c in (tiny, again)]
    assert ids[0] == ids[1]


def test_half_precision_weights_load_as_float32(tiny: Checkpoint, tmp_path: Path) -> None:
    half = saved_again(tiny, tmp_path / "half", torch.float16)
    assert load_file(half.folder / "edge.safetensors")["q_former.query"].dtype == torch.float16
    assert half.edge_model().q_former.query.dtype == torch.float32
    assert half.projector().linear1.weight.dtype == torch.float32
    assert half.fingerprint != tiny.fingerprint
    torch.testing.assert_close(
        half.edge_model().state_dict(), tiny.edge_model().state_dict(), rtol=1e-3, atol=1e-6
    )


def test_saving_replaces_the_checkpoint_and_nothing_else(copied: Checkpoint) -> None:
    (copied.folder / "README.md").write_text("kept")
    (copied.decoder / "stale.safetensors").touch()
    half = saved_again(copied, copied.folder, torch.float16)
    assert half.fingerprint != copied.fingerprint
    assert sorted(path.name for path in half.folder.iterdir()) == [
        "README.md",
        "config.json",
        "decoder",
        "edge.safetensors",
    ]
    assert not (half.decoder / "stale.safetensors").exists()
    assert [path.name for path in half.folder.parent.iterdir()] == [half.folder.name]


def test_a_failed_save_keeps_the_old_checkpoint(copied: Checkpoint) -> None:
    class Unwritable:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("disk full")

    decoder = Gemma3ForCausalLM.from_pretrained(copied.decoder)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(copied.folder, copied.edge_model(), decoder, Unwritable(), torch.float16)
    assert open_checkpoint(copied.folder) == copied


# --- The fingerprint ----------------------------------------------------------------------------


def test_fingerprints_are_16_hex_digits(tiny: Checkpoint) -> None:
    assert len(tiny.fingerprint) == 16
    assert set(tiny.fingerprint) <= set("0123456789abcdef")


def test_the_smallest_change_of_any_weight_changes_the_fingerprint(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    tensors = load_file(tiny.folder / "edge.safetensors")
    seen = {tiny.fingerprint}
    for name, tensor in tensors.items():
        changed = tensor.clone()
        last = changed.view(-1)[-1:]
        last.copy_(torch.nextafter(last, torch.full_like(last, torch.inf)))
        save_file({**tensors, name: changed}, tmp_path / "edge.safetensors")
        seen.add(fingerprint(tiny.config, tmp_path / "edge.safetensors"))
    assert len(seen) == 1 + len(tensors)


def _reshaped(tensors: dict[str, Tensor]) -> None:
    tensors["mlp.linear1.weight"] = tensors["mlp.linear1.weight"].reshape(-1, 2).contiguous()


def _renamed(tensors: dict[str, Tensor]) -> None:
    tensors["mlp.linear9.bias"] = tensors.pop("mlp.linear1.bias")


def _other_type(tensors: dict[str, Tensor]) -> None:
    tensors["q_former.query"] = tensors["q_former.query"].view(torch.int32)


@pytest.mark.parametrize("change", [_reshaped, _renamed, _other_type])
def test_equal_bytes_of_another_type_or_shape_change_the_fingerprint(
    copied: Checkpoint, change: Change
) -> None:
    assert rewrite(copied, change).fingerprint != copied.fingerprint


def test_every_shape_of_the_configuration_changes_the_fingerprint(tiny: Checkpoint) -> None:
    def variants(part: Any) -> list[Any]:
        return [
            dataclasses.replace(part, **{field.name: (getattr(part, field.name) or 0) + 1})
            for field in dataclasses.fields(part)
            if isinstance(getattr(part, field.name), int | float)
        ]

    weights = tiny.folder / "edge.safetensors"
    configs = [
        *variants(TINY),
        dataclasses.replace(TINY, padded=True),
        *(dataclasses.replace(TINY, encoder=encoder) for encoder in variants(TINY.encoder)),
        *(dataclasses.replace(TINY, q_former=q_former) for q_former in variants(TINY.q_former)),
    ]
    # Four fields of ModelConfig (padded + 1 equals True in Python, not in JSON), padded=True, six
    # fields of the encoder, eight of the Q-Former.
    assert len(configs) == 4 + 1 + 6 + 8
    found = {fingerprint(config, weights) for config in configs}
    assert len(found) == len(configs)
    assert tiny.fingerprint not in found


def test_name_and_languages_do_not_change_the_fingerprint(tiny: Checkpoint) -> None:
    renamed = dataclasses.replace(TINY, name="other", languages=("jpn",))
    assert fingerprint(renamed, tiny.folder / "edge.safetensors") == tiny.fingerprint


def test_the_fingerprint_does_not_depend_on_the_files_layout(copied: Checkpoint) -> None:
    config = copied.folder / "config.json"
    data = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps(dict(reversed(data.items())), indent=7), "utf-8")
    path = copied.folder / "edge.safetensors"
    tensors = load_file(path)
    save_file(dict(reversed(tensors.items())), path, metadata={"note": "of no consequence"})
    assert open_checkpoint(copied.folder).fingerprint == copied.fingerprint


# --- What is refused ------------------------------------------------------------------------------


def _damage(tensors: dict[str, Tensor]) -> None:
    del tensors["mlp.linear1.bias"]
    tensors["mlp.linear3.bias"] = torch.zeros(3)
    tensors["mlp.norm.weight"] = torch.zeros(7)


@pytest.mark.parametrize("load", [Checkpoint.edge_model, Checkpoint.projector])
def test_every_tensor_that_does_not_fit_is_listed(
    copied: Checkpoint, load: Callable[[Checkpoint], Any]
) -> None:
    damaged = rewrite(copied, _damage)
    with pytest.raises(CheckpointError) as caught:
        load(damaged)
    cause = caught.value.cause
    assert "linear1.bias is missing" in cause
    assert "linear3.bias is unexpected" in cause
    assert "norm.weight has shape (7,) instead of (64,)" in cause


def test_the_projector_loads_beside_a_broken_encoder(copied: Checkpoint) -> None:
    def remove(tensors: dict[str, Tensor]) -> None:
        del tensors["encoder.conv1.weight"]

    damaged = rewrite(copied, remove)
    damaged.projector()
    with pytest.raises(CheckpointError, match=r"encoder\.conv1\.weight is missing"):
        damaged.edge_model()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"name": "x"}', b"[" * 100_000],
    ids=["empty", "cut", "list", "null", "not text", "incomplete", "deep"],
)
def test_a_damaged_configuration_is_refused(copied: Checkpoint, content: bytes) -> None:
    (copied.folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        open_checkpoint(copied.folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_damaged_weights_are_refused(copied: Checkpoint, keep: int) -> None:
    path = copied.folder / "edge.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged"):
        open_checkpoint(copied.folder)


@pytest.mark.parametrize("name", ["config.json", "edge.safetensors"])
def test_a_missing_file_is_named_as_such(copied: Checkpoint, name: str) -> None:
    (copied.folder / name).unlink()
    with pytest.raises(CheckpointError, match="No such file") as caught:
        open_checkpoint(copied.folder)
    assert "models/esrt-nano" in caught.value.remedy
    assert caught.value.exit_code == 2


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        open_checkpoint(tmp_path / "nowhere")


def test_a_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(CheckpointError, match="Not a directory"):
        open_checkpoint(path)


def test_a_checkpoint_can_be_moved(copied: Checkpoint) -> None:
    elsewhere = copied.folder.with_name("elsewhere")
    shutil.move(copied.folder, elsewhere)
    assert open_checkpoint(elsewhere).fingerprint == copied.fingerprint


def test_the_threshold_of_the_confidence_is_read(copied: Checkpoint) -> None:
    assert copied.confidence_threshold is None
    file = copied.folder / "confidence.json"
    file.write_text(json.dumps({"fingerprint": copied.fingerprint, "threshold": -0.25}))
    assert open_checkpoint(copied.folder).confidence_threshold == -0.25


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"threshold": "low"}', "is damaged"),
        ('{"threshold": -0.25, "fingerprint": "0123456789abcdef"}', "other weights"),
    ],
)
def test_a_threshold_that_cannot_be_used_is_refused(
    copied: Checkpoint, content: str, words: str
) -> None:
    (copied.folder / "confidence.json").write_text(content)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(copied.folder)
