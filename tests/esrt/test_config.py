"""Configurations: their JSON form, and the shapes of the models that they describe."""

import dataclasses
import json
from typing import Any

import pytest
import torch

from esrt.config import CONFIGS, ModelConfig, named_config
from esrt.errors import CheckpointError
from esrt.languages import LANGUAGES
from esrt.model import EdgeModel
from esrt.wire import Split
from tests.tiny_checkpoint import TINY

# A small model in the form of the released ones: learned queries over a padded input.
QUERIES = dataclasses.replace(
    TINY,
    q_former=dataclasses.replace(
        TINY.q_former, queries=5, stride=None, overlap=0, offset_bias=False
    ),
    padded=True,
    max_seconds=2.0,
)
ALL = [*CONFIGS.values(), TINY, QUERIES]
names = [*CONFIGS, "tiny", "tiny-queries"]


@pytest.mark.parametrize("config", ALL, ids=names)
def test_survives_json(config: ModelConfig) -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("part", [None, "encoder", "q_former"])
def test_unknown_keys_are_refused(part: str | None) -> None:
    data = TINY.to_dict()
    (data if part is None else data[part])["depth"] = 3
    with pytest.raises(CheckpointError, match="depth"):
        ModelConfig.from_dict(data)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        *((None, key) for key in TINY.to_dict()),
        *(("encoder", key) for key in ("width", "layers", "heads", "inner_width")),
        *(("q_former", key) for key in ("width", "layers", "heads", "inner_width", "queries")),
    ],
)
def test_missing_keys_are_refused_by_name(part: str | None, key: str) -> None:
    data = TINY.to_dict()
    del (data if part is None else data[part])[key]
    with pytest.raises(CheckpointError, match=key):
        ModelConfig.from_dict(data)


def test_an_offset_bias_without_windows_is_refused() -> None:
    data = TINY.to_dict()
    del data["q_former"]["stride"]
    with pytest.raises(CheckpointError, match="offset_bias needs stride"):
        ModelConfig.from_dict(data)


@pytest.mark.parametrize(
    "data", [None, [], 3, "config", {}, {**TINY.to_dict(), "encoder": 3}], ids=repr
)
def test_other_json_is_refused(data: Any) -> None:
    with pytest.raises(CheckpointError):
        ModelConfig.from_dict(data)


def test_named_configurations() -> None:
    assert list(CONFIGS) == ["esrt-nano", "esrt-mini", "whisper-small", "esrt-4b", "esrt-12b"]
    assert all(named_config(name).name == name for name in CONFIGS)
    with pytest.raises(CheckpointError, match="esrt-nano"):
        named_config("esrt-13b")


def test_languages_are_known() -> None:
    assert all(set(config.languages) <= LANGUAGES.keys() for config in CONFIGS.values())
    assert all(len(named_config(name).languages) == 45 for name in ("esrt-4b", "esrt-12b"))


@pytest.mark.parametrize("config", [TINY, named_config("esrt-nano")], ids=["tiny", "nano"])
def test_tokens_follow_the_length(config: ModelConfig) -> None:
    model = EdgeModel(config).eval()
    multiple = config.frame_multiple
    longest = config.max_frames
    assert longest <= config.max_seconds * 100 < longest + multiple
    for frames in (multiple, 2 * multiple, 7 * multiple, longest):
        with torch.inference_mode():
            features = model.features(torch.zeros(1, config.encoder.mel_bins, frames))
        assert features.shape == (1, config.tokens(frames), config.feature_width(Split.QFORMER))
    assert config.max_tokens == config.tokens(longest)


def test_tokens_of_learned_queries_are_fixed() -> None:
    model = EdgeModel(QUERIES).eval()
    with torch.inference_mode():
        embeddings = model(torch.zeros(2, QUERIES.encoder.mel_bins, QUERIES.max_frames))
    assert QUERIES.max_frames == 200
    assert embeddings.shape == (2, QUERIES.max_tokens, QUERIES.feature_width(Split.ADAPTER))
    assert QUERIES.max_tokens == 5


def test_nano_makes_12_5_tokens_a_second() -> None:
    nano = named_config("esrt-nano")
    assert nano.frame_multiple == 8
    assert nano.max_tokens == 150


@pytest.mark.parametrize(("name", "decoder_width"), [("esrt-4b", 2560), ("esrt-12b", 3840)])
def test_large_models_have_the_published_shapes(name: str, decoder_width: int) -> None:
    config = named_config(name)
    with torch.device("meta"):  # shapes without data
        model = EdgeModel(config)
        mel = torch.zeros(1, 128, config.max_frames)
        states = model.encoder(mel)
        features = model.features(mel)
        embeddings = model.mlp(features)
    assert config.max_frames == 3000
    assert states.shape == (1, 1500, 1280)
    assert features.shape == (1, 80, 768)
    assert (config.max_tokens, config.feature_width(Split.QFORMER)) == (80, 768)
    assert embeddings.shape == (1, 80, decoder_width)
    assert config.feature_width(Split.ADAPTER) == decoder_width
    # transformers' whisper-large-v3 has 636,968,960 numbers in its encoder.
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == 636_968_960
