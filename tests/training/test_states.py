"""Training on cached encoder states: statistics, standardization, augmentation, whole runs."""

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from esrt.checkpoint import save_checkpoint
from esrt.config import CONFIGS
from esrt.model import EdgeModel
from esrt.pretrained_encoder import encoder_tensors
from tests.training.helpers import SMALL, recipe, state_corpus
from training.corpus.build import NON_SPEECH, OPEN
from training.corpus.text import Sentence
from training.data import IGNORE, Collator, Stream, alphabet_of
from training.recipe import Balance, RecipeError, Stage, StateAugmentation, Task
from training.sampling import Item, Sampler
from training.state_augmentation import augment_states
from training.state_corpus import (
    CacheError,
    StateCorpus,
    Statistics,
    load_states,
    measure,
)
from training.state_edge import StateEdge, join_edge, published_encoder, split_edge, standardize
from training.training_model import TrainingModel
from training.training_run import TrainingRun
from training.translation import translate

WIDTH = SMALL.encoder.width
UNEQUAL = Statistics(
    np.linspace(-30, 40, WIDTH, dtype=np.float32),
    np.geomspace(0.01, 100, WIDTH, dtype=np.float32),
)


@pytest.fixture(scope="module")
def states(splits: dict[str, list[Sentence]]) -> StateCorpus:
    return state_corpus(splits["train"], 26, UNEQUAL)


def test_statistics_are_those_of_the_states(states: StateCorpus) -> None:
    measured = measure(replace(states, statistics=None))
    np.testing.assert_allclose(measured.mean, UNEQUAL.mean, atol=0.2 * UNEQUAL.deviation.max())
    np.testing.assert_allclose(measured.deviation, UNEQUAL.deviation, rtol=0.2)
    rows = np.concatenate([states.speech(example) for example in states.examples])
    assert np.abs(rows.mean(0)).max() < 0.2
    assert np.abs(rows.std(0) - 1).max() < 0.2


def test_a_standardized_q_former_reads_raw_states_as_before_standardized_ones(
    states: StateCorpus,
) -> None:
    """The dimensions differ in scale by four orders of magnitude."""
    edge = StateEdge(SMALL).eval()
    example = states.examples[0]
    standardized = torch.from_numpy(states.speech(example))[None]
    raw = torch.from_numpy(replace(states, statistics=None).speech(example))[None]
    frames = torch.tensor([2 * raw.shape[1]])
    with torch.no_grad():
        expected = edge.features(standardized, frames)
        unlike = edge.features(raw, frames)
        standardize(edge.q_former, UNEQUAL)
        actual = edge.features(raw, frames)
    torch.testing.assert_close(actual, expected, rtol=0, atol=5e-4)
    assert (unlike - expected).abs().max() > 0.1


def test_the_inverse_statistics_take_standardization_back() -> None:
    edge = StateEdge(SMALL)
    before = {name: tensor.clone() for name, tensor in edge.state_dict().items()}
    standardize(edge.q_former, UNEQUAL)
    standardize(edge.q_former, UNEQUAL.inverse)
    for name, tensor in edge.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-4, atol=1e-4)


def test_augmentation_masks_and_drops_by_the_settings() -> None:
    random = np.random.default_rng(0)
    ones = np.ones((100, 50), np.float32)
    unchanged = augment_states(ones, StateAugmentation(), random)
    assert np.array_equal(unchanged, ones)
    masked = augment_states(ones, StateAugmentation(masks=1, mask_states=8), random)
    assert int((masked == 0).all(1).sum()) == 8
    dropped = augment_states(ones, StateAugmentation(dropped=0.2), random)
    share = (dropped == 0).all(0).mean()
    assert 0.05 < share < 0.4
    moved = augment_states(ones, StateAugmentation(offset=0.15), random)
    assert np.abs(np.diff(moved, axis=0)).max() == 0
    assert 0.08 < moved[0].std() < 0.25


def test_short_states_may_be_masked_whole() -> None:
    settings = StateAugmentation(masks=1, mask_states=8)
    short = np.ones((4, 3), np.float32)
    assert not augment_states(short, settings, np.random.default_rng(0)).any()


def test_open_items_are_recognized_and_other_sound_is_answered_by_nothing(
    states: StateCorpus, tokenizer: PreTrainedTokenizerFast
) -> None:
    balance = Balance(open=0.3, non_speech=0.2, wrong_language=0.1)
    sampler = Sampler(states, balance, {Task.SRT: 1}, Random(0))
    items = [item for item, _ in zip(sampler.items(), range(1000), strict=False)]
    kinds = [item.example.kind for item in items]
    assert 0.25 < kinds.count(OPEN) / 1000 < 0.35
    assert 0.15 < kinds.count(NON_SPEECH) / 1000 < 0.25
    assert 0.07 < sum(item.named is not None for item in items) / 1000 < 0.13
    collator = Collator(SMALL, tokenizer, alphabet_of(states.examples), states=True)

    def answer(item: Item) -> str:
        batch = collator([item], [states.speech(item.example)])
        labels = batch.labels[0]
        return tokenizer.decode(labels[labels != IGNORE])

    for item in items[:100]:
        assert item.target != item.example.language
        tags = f"<|{item.named or item.example.language}|><|{item.target}|>"
        if item.named or item.example.kind == NON_SPEECH:
            assert answer(item) == f"{tags}<eos>"
        elif item.example.kind == OPEN:
            assert item.task is Task.ASR
            assert answer(item) == item.example.texts[item.example.language] + tags
        else:
            assert answer(item).endswith(item.example.texts[item.target] + "<eos>")


def test_a_stream_gives_standardized_states(
    states: StateCorpus, tokenizer: PreTrainedTokenizerFast
) -> None:
    collator = Collator(SMALL, tokenizer, alphabet_of(states.examples), states=True)
    stage = Stage(until=1, tasks={Task.SRT: 1})
    batch = next(iter(Stream(states, recipe(states="unused"), stage, collator, 1)))
    assert batch.speech.shape == (4, int(batch.frames.max()) // 2, WIDTH)
    valid = torch.arange(batch.speech.shape[1]) < batch.frames[:, None] // 2
    assert 0.7 < batch.speech[valid].std() < 1.3


def test_a_model_learns_from_states(states: StateCorpus, tmp_path: Path) -> None:
    settings = recipe(states="unused", learning_rate=3e-3)
    run = TrainingRun(settings, states, tmp_path)
    stage = settings.stages[0]
    batch = next(iter(Stream(states, settings, stage, run.model.collator, 1)))
    losses = [run.train_step(batch) for _ in range(25)]
    assert losses[0].keys() == {"letters", "pieces", "text"}
    assert losses[-1]["text"] < 0.8 * losses[0]["text"]
    predictions = translate(
        run.model.edge.eval(), run.model.decoder.eval(), run.model.tokenizer, states, directions=1
    )
    assert len(predictions) == len(states.examples)


def test_the_voice_loss_is_of_the_paired_states(states: StateCorpus, tmp_path: Path) -> None:
    """The reference voice's features are those of the model that the run starts from."""
    first = TrainingRun(recipe(states="unused"), states, tmp_path)
    edge = EdgeModel(SMALL)
    for name in ("q_former", "mlp"):
        getattr(edge, name).load_state_dict(getattr(first.model.edge, name).state_dict())
    standardize(edge.q_former, UNEQUAL)
    save_checkpoint(
        tmp_path / "initial", edge, first.model.decoder, first.model.tokenizer, torch.float32
    )
    settings = recipe(
        states="unused", initial=tmp_path / "initial", speaker_invariance=1.0, letter_ctc=0
    )
    paired = replace(states, parallel_shards={0: states.shards[0]})
    model = TrainingModel(settings, paired)
    stage = settings.stages[0]
    batch = next(iter(Stream(paired, settings, stage, model.collator, 1)))
    assert batch.paired.all()
    assert batch.parallel.shape == batch.speech.shape
    # Nothing is augmented, so the parallel states are the states.
    assert model.eval()(batch)["voice"] < 1e-4
    batch = next(iter(Stream(states, settings, stage, model.collator, 1)))
    assert not batch.paired.any()
    assert "voice" not in model(batch)


def test_a_run_on_states_resumes(states: StateCorpus, tmp_path: Path) -> None:
    run = TrainingRun(recipe(states="unused"), states, tmp_path)
    stage = run.recipe.stages[0]
    stream = iter(Stream(states, run.recipe, stage, run.model.collator, 1))
    run.train_step(next(stream))
    run.save()
    resumed = TrainingRun(recipe(states="unused"), states, tmp_path)
    batch = next(stream)
    assert run.train_step(batch) == pytest.approx(resumed.train_step(batch), rel=1e-5)


def test_a_model_without_a_published_encoder_is_refused() -> None:
    with pytest.raises(RecipeError, match="esrt-small has no published encoder"):
        published_encoder(SMALL)


def test_a_missing_cache_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"no cached states\. Run: python -m training\.cache"):
        load_states(tmp_path)


def test_the_joined_model_has_the_published_encoder_and_reads_audio() -> None:
    """Q-Former and projector are split off and joined again without a loss."""
    config = CONFIGS["esrt-mini"]
    assert config.encoder_weights
    torch.manual_seed(0)
    whole = EdgeModel(config).eval()
    whole.encoder.load_state_dict(published_encoder(config))
    mel = torch.randn(1, config.encoder.mel_bins, 80)
    with torch.no_grad():
        states = whole.encoder(mel)[0].numpy()
        raw = StateCorpus((states.astype(np.float16),), [])
        statistics = Statistics(states.mean(0), states.std(0))
        edge = split_edge(whole, statistics).eval()
        standardized = torch.from_numpy((states - statistics.mean) / statistics.deviation)[None]
        expected = whole(mel)
        between = edge(standardized, torch.tensor([80]))
        joined = join_edge(edge, statistics)
        actual = joined(mel)
    assert raw.shards[0].shape == states.shape
    torch.testing.assert_close(between, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)
    published = encoder_tensors(config.encoder_weights)
    for name, tensor in joined.encoder.state_dict().items():
        assert torch.equal(tensor.half(), published[name]), name


def test_the_model_of_a_recipe_starts_from_a_seed(states: StateCorpus) -> None:
    torch.manual_seed(0)
    one = TrainingModel(recipe(states="unused"), states)
    torch.manual_seed(0)
    other = TrainingModel(recipe(states="unused"), states)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert not any("encoder.conv" in name for name in one.state_dict())
