"""Codec tables of the transform codecs: statistics, fitting, writing, reading, and use."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma3ForCausalLM, PreTrainedTokenizerFast

from esrt import wire
from esrt.checkpoint import Checkpoint, save_checkpoint
from esrt.errors import CheckpointError
from esrt.model import EdgeModel
from esrt.wire import Codec, Split
from tests.training.helpers import SMALL, state_corpus
from training import codec_tables as codec
from training.codec_tables import FeatureSample, RateTarget
from training.corpus.build import Corpus
from training.corpus.text import Sentence
from training.state_corpus import Statistics
from training.training_model import decoder_config


def correlated(seed: int = 0, utterances: int = 60) -> FeatureSample:
    """Make features of width 6; the gradients lie in the first two directions only."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(6, 6))
    features = [
        (np.cumsum(random.normal(size=(int(random.integers(3, 40)), 6)), axis=0) @ mixing).astype(
            np.float32
        )
        for _ in range(utterances)
    ]
    gradients = random.normal(size=(sum(map(len, features)), 6)) * [1, 1, 0, 0, 0, 0]
    return FeatureSample(features, 0.1 * gradients, seconds=100.0)


def test_coefficients_are_uncorrelated_and_in_steps() -> None:
    sample = correlated()
    tables = codec.fit_tables(sample, RateTarget(0.05, 0.1), 1)
    features = np.concatenate(sample.features)
    y = (features - tables.mean) @ tables.analysis.T
    correlations = np.corrcoef(y.T) - np.eye(len(y.T))
    assert np.abs(correlations).max() < 0.01
    spread = y.std(axis=0)
    assert (np.diff(spread) <= 1e-3 * spread[0]).all()


def test_directions_with_gradients_get_more_bits() -> None:
    sample = correlated()
    tables = codec.fit_tables(sample, RateTarget(0.2, 1e-4), 4)
    error, size = np.zeros(6), np.zeros(6)
    for features in sample.features:
        decoded = tables.reconstruct(tables.quantize(features).astype(np.float32))
        error += np.square(decoded - features).sum(axis=0)
        size += np.square(features - tables.mean).sum(axis=0)
    relative = error / size
    assert relative[:2].max() < 0.1 * relative[2:].min()


def test_smaller_steps_cost_more_and_lose_less() -> None:
    sample = correlated()
    costs, errors = [], []
    for step in (0.4, 0.2, 0.1):
        tables = codec.fit_tables(sample, RateTarget(step, 0.1), 4)
        integers = [tables.quantize(features) for features in sample.features]
        costs.append(sum(len(tables.write(one)) for one in integers))
        errors.append(
            sum(
                np.square(tables.reconstruct(one.astype(np.float32)) - features).sum()
                for one, features in zip(integers, sample.features, strict=True)
            )
        )
    assert costs == sorted(costs)
    assert errors == sorted(errors, reverse=True)


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Checkpoint:
    torch.manual_seed(0)
    decoder = Gemma3ForCausalLM(decoder_config(SMALL, tokenizer))
    folder = tmp_path_factory.mktemp("codec") / "small"
    return save_checkpoint(folder, EdgeModel(SMALL), decoder, tokenizer, torch.float32)


def test_codec_tables_are_computed_for_a_checkpoint(checkpoint: Checkpoint, corpus: Corpus) -> None:
    assert checkpoint.codec_tables() is None
    sample = codec.collect_statistics(checkpoint, corpus, 30)
    assert len(sample.features) == 30
    assert sample.gradients.shape == (sum(map(len, sample.features)), SMALL.q_former.width)
    assert np.isfinite(sample.gradients).all()
    assert sample.gradients.std() > 0
    scale = float(np.sqrt(np.trace(sample.gradients.T @ sample.gradients) / len(sample.gradients)))
    spread = float(np.concatenate(sample.features).std())
    tables = codec.fit_tables(sample, RateTarget(0.05 * scale * spread, 0.1), 8)
    codec.write(checkpoint, Split.QFORMER, {Codec.KLT: tables})
    codec_tables = checkpoint.codec_tables()
    assert codec_tables is not None
    features = sample.features[0]
    packet = wire.encode(
        features,
        fingerprint=checkpoint.fingerprint,
        split="qformer",
        codec="klt",
        duration_ms=0,
        codec_tables=codec_tables,
    )
    assert len(packet) < wire.HEADER_BYTES + features.nbytes / 4
    decoded = wire.decode(packet, codec_tables).features
    assert np.square(decoded - features).mean() < 0.3 * np.square(features - tables.mean).mean()
    # The statistics are repeatable.
    again = codec.collect_statistics(checkpoint, corpus, 30)
    np.testing.assert_allclose(again.gradients, sample.gradients, atol=1e-5)


def test_statistics_of_states_are_those_of_sentences_with_translations(
    checkpoint: Checkpoint, splits: dict[str, list[Sentence]]
) -> None:
    width = SMALL.encoder.width
    ones = Statistics(np.zeros(width, np.float32), np.ones(width, np.float32))
    states = replace(state_corpus(splits["train"], 26, ones), statistics=None)
    sample = codec.collect_statistics(checkpoint, states, 100)
    translated = [one for one in states.examples if len(one.texts) > 1]
    assert len(sample.features) == len(translated) < 26
    assert sample.seconds == pytest.approx(sum(one.samples for one in translated) / 50)
    tokens = sorted(one.samples // 4 for one in translated)
    assert [len(features) for features in sample.features] == tokens
    assert sample.gradients.std() > 0


def test_new_weights_invalidate_codec_tables(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    decoder = Gemma3ForCausalLM(decoder_config(SMALL, tokenizer))
    folder = tmp_path / "small"
    first = save_checkpoint(folder, EdgeModel(SMALL), decoder, tokenizer, torch.float32)
    codec.write(
        first, Split.QFORMER, {Codec.KLT: codec.fit_tables(correlated(), RateTarget(0.2, 0.1), 4)}
    )
    assert first.codec_tables() is not None
    second = save_checkpoint(folder, EdgeModel(SMALL), decoder, tokenizer, torch.float32)
    assert second.codec_tables() is None
    codec.write(
        first, Split.QFORMER, {Codec.KLT: codec.fit_tables(correlated(), RateTarget(0.2, 0.1), 4)}
    )
    with pytest.raises(CheckpointError, match=first.fingerprint):
        second.codec_tables()
