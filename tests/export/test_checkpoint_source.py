"""Values of --checkpoint and --seconds."""

import json
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub.errors
import pytest
import torch
from safetensors.torch import save_file

from esrt import bundled
from esrt.checkpoint import Checkpoint, random_checkpoint
from esrt.errors import ArtifactError, CheckpointError
from esrt.hf_checkpoint import open_hf_checkpoint
from esrt.model import EdgeModel
from export import checkpoint_source
from export.input_shapes import resolve_frames, restrict_lengths
from tests.export.backends.test_xnnpack import PADDED
from tests.tiny_checkpoint import TINY


def test_random_weights_are_always_the_same() -> None:
    first, again = random_checkpoint(TINY), random_checkpoint(TINY)
    other = random_checkpoint(TINY, seed=1)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    weights = [c.edge_model().state_dict()["encoder.conv1.weight"] for c in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_random_names_a_configuration() -> None:
    small = checkpoint_source.open_source("random:whisper-small")
    assert (small.config.name, small.config.padded_seconds) == ("whisper-small", 30.0)
    with pytest.raises(CheckpointError, match=r"esrt-9b.*esrt-4b"):
        checkpoint_source.open_source("random:esrt-9b")


def test_the_bundled_checkpoint_is_never_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert checkpoint_source.open_bundled().config.name == "esrt-nano"
    monkeypatch.setattr(
        checkpoint_source, "snapshot_download", lambda *_, **__: pytest.fail("downloaded")
    )
    monkeypatch.setattr(bundled, "CHECKPOINT", Path("models/esrt-nano"))  # of an installed wheel
    with pytest.raises(CheckpointError, match="Pass --checkpoint with a folder or a Hugging Face"):
        checkpoint_source.open_bundled()


def test_a_folder_comes_first(lively: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        checkpoint_source, "snapshot_download", lambda *_, **__: pytest.fail("downloaded")
    )
    monkeypatch.chdir(lively.folder.parent.parent)
    name = f"{lively.folder.parent.name}/{lively.folder.name}"
    assert checkpoint_source.open_source(name).fingerprint == lively.fingerprint
    with pytest.raises(CheckpointError, match="No checkpoint in"):
        checkpoint_source.open_source(f"{lively.folder.parent.name}/mistyped")


def test_a_repository_is_downloaded_without_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "snapshot").mkdir()
    weights = random_checkpoint(PADDED).edge_model().state_dict()
    save_file(weights, tmp_path / "snapshot" / "model.safetensors")
    (tmp_path / "snapshot" / "modeling_esrt.py").write_text("raise SystemExit('executed')")
    auto_map = {"AutoModel": "modeling_esrt.Esrt"}
    (tmp_path / "snapshot" / "config.json").write_text(json.dumps({"auto_map": auto_map}))
    downloads = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        downloads.append((name, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(checkpoint_source, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    opened = checkpoint_source.open_source("yxdu/ESRT-4B")
    ((name, patterns),) = downloads
    assert name == "yxdu/ESRT-4B"
    for code in ("modeling_esrt.py", "decoder/modeling.py", "decoder/pytorch_model.bin"):
        assert not any(fnmatch(code, pattern) for pattern in patterns)
    for data in ("decoder/config.json", "decoder/tokenizer.json", "decoder/model.safetensors"):
        assert any(fnmatch(data, pattern) for pattern in patterns)
    assert opened.fingerprint == open_hf_checkpoint(tmp_path / "snapshot").fingerprint
    model = opened.edge_model()
    assert isinstance(model, EdgeModel)
    assert torch.equal(model.state_dict()["q_former.query"], weights["q_former.query"])


@pytest.mark.parametrize(
    "failure",
    [
        huggingface_hub.errors.LocalEntryNotFoundError("no connection\nand nothing cached"),
        ConnectionError(),
        OSError("disk full"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_an_unreachable_repository_is_one_line(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise failure

    monkeypatch.setattr(checkpoint_source, "snapshot_download", fail)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"yxdu/ESRT-4B.*Hugging Face") as caught:
        checkpoint_source.open_source("yxdu/ESRT-4B")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_damaged_download_names_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "snapshot").mkdir()
    monkeypatch.setattr(
        checkpoint_source, "snapshot_download", lambda *_, **__: str(tmp_path / "snapshot")
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="yxdu/ESRT-4B cannot be used"):
        checkpoint_source.open_source("yxdu/ESRT-4B")


def test_lengths_are_whole_blocks_in_order() -> None:
    assert resolve_frames(TINY, []) == ()
    assert resolve_frames(TINY, [3, 1.0, 1.01]) == (104, 304)  # 100 is no multiple of 8
    assert resolve_frames(TINY, [4, 0.001]) == (8, 400)
    assert resolve_frames(TINY, [0.56, 1.12, 2.24]) == (56, 112, 224)  # times 100, a little more
    assert resolve_frames(PADDED, []) == resolve_frames(PADDED, [2]) == (200,)


@pytest.mark.parametrize("seconds", [0, -1, 4.01, float("nan"), float("inf")])
def test_impossible_lengths(seconds: float) -> None:
    with pytest.raises(ArtifactError, match="up to 4 s"):
        resolve_frames(TINY, [1, seconds])


def test_padded_models_have_their_length() -> None:
    with pytest.raises(ArtifactError, match="padded to 2 s"):
        resolve_frames(PADDED, [1])


def test_a_restricted_configuration() -> None:
    assert restrict_lengths(TINY, ()) is TINY
    one, several = restrict_lengths(TINY, (104,)), restrict_lengths(TINY, (104, 304))
    assert (one.padded_seconds, one.max_frames, one.max_tokens) == (1.04, 104, 13)
    assert (several.padded_seconds, several.max_frames, several.max_tokens) == (None, 304, 38)
