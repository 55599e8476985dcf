"""Packets of a transform codec: decoded with the checkpoint's tables only."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from cloud_vllm.api.app import create_app
from cloud_vllm.settings import Settings
from esrt import wire
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.wire import Codec, Split
from tests.cloud_vllm.helpers import PACKET, URL, assert_problem, wait_until_ready
from tests.tiny_checkpoint import SENTENCES, features
from training import codec_tables as codec
from training.codec_tables import FeatureSample, RateTarget


def with_codec_tables(checkpoint: Checkpoint, folder: Path, step: float) -> Checkpoint:
    """A copy of the checkpoint with codec tables of the tiny model's features."""
    shutil.copytree(checkpoint.folder, folder)
    copied = open_checkpoint(folder)
    spoken = [features(number, 20, seed) for number in range(len(SENTENCES)) for seed in range(9)]
    gradients = np.random.default_rng(0).normal(size=(20 * len(spoken), spoken[0].shape[1]))
    tables = codec.fit_tables(FeatureSample(spoken, gradients, 1.0), RateTarget(step, 0.1), 8)
    codec.write(copied, Split.QFORMER, {Codec.KLT: tables})
    return copied


@pytest.fixture(scope="module")
def uses_tables(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return with_codec_tables(checkpoint, tmp_path_factory.mktemp("learned") / "tiny", 0.2)


@pytest.fixture(scope="module")
def client(settings: Settings, uses_tables: Checkpoint) -> Iterator[TestClient]:
    settings = settings.model_copy(update={"checkpoint": uses_tables.folder})
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


def packet(checkpoint: Checkpoint, sentence: int = 0) -> bytes:
    return wire.encode(
        features(sentence, 12),
        fingerprint=checkpoint.fingerprint,
        split="qformer",
        codec="klt",
        duration_ms=960,
        codec_tables=checkpoint.codec_tables(),
    )


def test_the_codec_is_offered_if_there_are_tables(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["models"]
    assert model["codecs"] == ["fp16", "int8", "int4", "klt"]


@pytest.mark.parametrize("sentence", range(len(SENTENCES)))
def test_translates(client: TestClient, uses_tables: Checkpoint, sentence: int) -> None:
    answer = client.post(URL, content=packet(uses_tables, sentence), headers=PACKET).json()
    assert (answer["transcript"], answer["translation"]) == SENTENCES[sentence]


def test_other_tables_of_the_same_model(
    client: TestClient, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    other = with_codec_tables(checkpoint, tmp_path / "tiny", 0.1)
    response = client.post(URL, content=packet(other), headers=PACKET)
    assert_problem(response, 409, "fingerprint-mismatch", "codec tables")
