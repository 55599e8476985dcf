"""Exports of models with 80 mel bins: a tiny one, and one on the encoder of whisper-base."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Gemma3ForCausalLM

from esrt.checkpoint import Checkpoint, save_checkpoint
from esrt.config import WHISPER_BASE, ModelConfig, named_config
from esrt.manifest import Precision
from esrt.model import EdgeModel
from esrt.pretrained_encoder import encoder_tensors
from esrt.wire import Split
from export.backends import get_recipe
from export.diagnosis import inspect_artifact
from export.recipe import export
from tests.export.helpers import KINDS
from tests.tiny_checkpoint import TINY

SMALL = replace(TINY, encoder=replace(TINY.encoder, mel_bins=80))
# Parts of the tiny checkpoint around the whole encoder.
ON_WHISPER = replace(
    TINY,
    encoder=named_config("esrt-mini").encoder,
    encoder_weights=WHISPER_BASE,
    max_seconds=1.6,
)


def checkpoint(config: ModelConfig, lively: Checkpoint, folder: Path) -> Checkpoint:
    """A checkpoint whose weights are so large that features vary as trained ones do."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = EdgeModel(config)
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed_positions" not in name:
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    if config.encoder_weights is not None:
        model.encoder.load_state_dict(encoder_tensors(config.encoder_weights))
    decoder = Gemma3ForCausalLM.from_pretrained(lively.decoder)
    tokenizer = AutoTokenizer.from_pretrained(lively.decoder)
    return save_checkpoint(folder, model, decoder, tokenizer, torch.float16)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        *(pytest.param(kind, SMALL, id=kind) for kind in KINDS),
        pytest.param("onnx", ON_WHISPER, id="onnx on whisper-base"),
    ],
)
def test_an_export_is_sound(
    kind: str, config: ModelConfig, lively: Checkpoint, tmp_path: Path
) -> None:
    source, out = checkpoint(config, lively, tmp_path / "model"), tmp_path / "artifact"
    manifest = export(get_recipe(kind), source, out, Precision.FP32, Split.QFORMER).manifest
    assert manifest.fingerprint == source.fingerprint
    assert manifest.front_end.mel_bins == manifest.inputs[0].shape[1] == 80
    diagnosis = inspect_artifact(out, manifest, source)
    assert diagnosis.problems == ()
    assert diagnosis.texts["equal"] == diagnosis.texts["compared"] == 4
