"""Training model: losses, pretrained parts, and frozen parts."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperModel,
)

from esrt.checkpoint import random_checkpoint, save_checkpoint
from esrt.errors import CheckpointError
from esrt.languages import LANGUAGES
from tests.training.helpers import PADDED, SMALL, recipe
from training.corpus.build import Corpus
from training.data import IGNORE, Batch
from training.recipe import RecipeError, Task
from training.sampling import Item
from training.training_model import TrainingModel
from training.training_run import TrainingRun

TAGS = [language.tag for language in LANGUAGES.values()]


def batch_of(model: TrainingModel, corpus: Corpus, *tasks: Task, first: int = 0) -> Batch:
    """Make an item of each task, from consecutive examples."""
    chosen = corpus.examples[first : first + len(tasks)]
    items = [
        Item(example, "eng" if example.language == "tur" else "tur", task)
        for example, task in zip(chosen, tasks, strict=True)
    ]
    speech = [corpus.speech(item.example) for item in items if item.task is not Task.SMT]
    return model.collator(items, speech)


def copied(part: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in part.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], v) for k, v in other.items())


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> TrainingModel:
    torch.manual_seed(0)
    return TrainingModel(recipe(), corpus).eval()


def test_the_model_has_the_languages_of_the_corpus(model: TrainingModel, corpus: Corpus) -> None:
    assert model.config.languages == tuple(corpus.examples[0].texts)
    assert model.edge.config == model.config


def test_the_total_is_the_weighted_sum(model: TrainingModel, corpus: Corpus) -> None:
    losses = model(batch_of(model, corpus, Task.ASR, Task.SRT, Task.SMT))
    assert losses.keys() == {"letters", "pieces", "text", "total"}
    expected = 0.3 * losses["letters"] + 0.3 * losses["pieces"] + losses["text"]
    torch.testing.assert_close(losses["total"], expected)


def test_text_only_batches_have_no_speech_losses(model: TrainingModel, corpus: Corpus) -> None:
    losses = model(batch_of(model, corpus, Task.SMT, Task.SMT))
    assert losses.keys() == {"text", "total"}
    model.zero_grad()
    losses["total"].backward()
    assert all(weight.grad is None for weight in model.edge.parameters())
    assert any(weight.grad is not None for weight in model.decoder.parameters())


def test_zero_weights_leave_out_the_auxiliary_losses(corpus: Corpus) -> None:
    plain = TrainingModel(recipe(letter_ctc=0, piece_ctc=0), corpus)
    losses = plain(batch_of(plain, corpus, Task.SRT))
    assert losses.keys() == {"text", "total"}
    assert {name.split(".")[0] for name in plain.state_dict()} == {"edge", "decoder"}


@torch.inference_mode()
def test_rows_have_the_loss_that_they_have_alone(model: TrainingModel, corpus: Corpus) -> None:
    """Padding and other rows of the batch change nothing."""
    tasks = Task.SRT, Task.ASR, Task.SRT, Task.SMT
    batch = batch_of(model, corpus, *tasks)
    together = model(batch)["text"] * (batch.labels != IGNORE).sum()
    alone = torch.tensor(0.0)
    for number, task in enumerate(tasks):
        one = batch_of(model, corpus, task, first=number)
        alone += model(one)["text"] * (one.labels != IGNORE).sum()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)


@torch.inference_mode()
def test_the_text_loss_is_that_of_transformers(model: TrainingModel, corpus: Corpus) -> None:
    batch = batch_of(model, corpus, Task.SRT)
    features = model.edge(batch.speech, batch.frames)
    text = model.decoder.get_input_embeddings()(batch.text)
    labels = torch.cat([torch.full(features.shape[:2], IGNORE), batch.labels], dim=1)
    expected = model.decoder(inputs_embeds=torch.cat([features, text], 1), labels=labels).loss
    torch.testing.assert_close(model(batch)["text"], expected, rtol=1e-4, atol=1e-4)


def test_every_part_gets_a_gradient_from_speech(model: TrainingModel, corpus: Corpus) -> None:
    model.zero_grad()
    model(batch_of(model, corpus, Task.SRT))["total"].backward()
    for part in (model.edge.encoder, model.edge.q_former, model.edge.mlp, model.decoder):
        assert any(w.grad is not None and w.grad.abs().sum() > 0 for w in part.parameters())


# Speaker invariance.


@pytest.fixture(scope="module")
def initial(model: TrainingModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("initial")
    edge = random_checkpoint(SMALL, seed=9).edge_model()
    save_checkpoint(folder, edge, model.decoder, model.tokenizer, torch.float32)
    return folder


def parallel_to_itself(model: TrainingModel, corpus: Corpus) -> Batch:
    """Make a batch whose parallel audio is the speech itself."""
    items = [Item(example, "tur", Task.SRT) for example in corpus.examples[:3]]
    speech = [corpus.speech(item.example) for item in items]
    return model.collator(items, speech, speech)


def perturb(model: TrainingModel) -> None:
    """Add noise to the weights of the Q-Former."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.edge.q_former.parameters():
            weight += 0.1 * torch.randn_like(weight)


def test_the_voice_loss_of_equal_features_is_zero(corpus: Corpus, initial: Path) -> None:
    invariant = TrainingModel(recipe(initial=initial, speaker_invariance=2.0), corpus)
    batch = parallel_to_itself(invariant, corpus)
    assert invariant(batch)["voice"] < 1e-4
    perturb(invariant)
    losses = invariant(batch)
    assert losses["voice"] > 0.1
    others = 0.3 * losses["letters"] + 0.3 * losses["pieces"] + losses["text"]
    torch.testing.assert_close(losses["total"], 2 * losses["voice"] + others)


def test_training_lowers_the_voice_loss(corpus: Corpus, initial: Path, tmp_path: Path) -> None:
    settings = {"letter_ctc": 0, "piece_ctc": 0, "frozen": ["mlp", "decoder"]}
    run = TrainingRun(recipe(initial=initial, speaker_invariance=1.0, **settings), corpus, tmp_path)
    batch, teacher = parallel_to_itself(run.model, corpus), copied(run.model.teacher)
    perturb(run.model)
    losses = [run.train_step(batch)["voice"] for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    assert same(teacher, run.model.teacher.state_dict())


# Pretrained parts.


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_whisper(tmp_path_factory.mktemp("whisper"))


def saved_whisper(folder: Path, **changes: int) -> Path:
    """Save a Whisper of the padded model's shape."""
    shape = PADDED.encoder
    settings = {
        "vocab_size": 60,
        "num_mel_bins": shape.mel_bins,
        "d_model": shape.width,
        "encoder_layers": shape.layers,
        "encoder_attention_heads": shape.heads,
        "encoder_ffn_dim": shape.inner_width,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 32,
        "max_source_positions": shape.max_positions,
        "max_target_positions": 20,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    WhisperModel(WhisperConfig(**(settings | changes))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    return saved_gemma(tmp_path_factory.mktemp("gemma"), corpus)


def saved_gemma(folder: Path, corpus: Corpus, width: int = 32, spare: int = 0) -> Path:
    """Save a Gemma 3 with a tokenizer without language tags, and spare embeddings."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([e.texts["eng"] for e in corpus.examples], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=len(tokenizer) + spare,
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=512,
            sliding_window=64,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    ).save_pretrained(folder)
    return folder


def padded(**changes: object) -> dict[str, object]:
    return {"model": PADDED.name, "piece_ctc": 0, **changes}


def test_pretrained_parts_are_loaded(corpus: Corpus, whisper: Path, gemma: Path) -> None:
    found = TrainingModel(recipe(**padded(encoder=str(whisper), decoder=str(gemma))), corpus)
    encoder = WhisperModel.from_pretrained(whisper).encoder
    assert same(found.edge.encoder.state_dict(), encoder.state_dict())
    old = Gemma3ForCausalLM.from_pretrained(gemma)
    assert same(found.decoder.model.layers.state_dict(), old.model.layers.state_dict())
    known = old.config.vocab_size
    embeddings = found.decoder.get_input_embeddings().weight
    assert torch.equal(embeddings[:known], old.get_input_embeddings().weight)
    losses = found(batch_of(found, corpus, Task.SRT, Task.ASR, Task.SMT))
    assert losses.keys() == {"letters", "text", "total"}
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_a_pretrained_decoder_gets_the_tags(corpus: Corpus, gemma: Path) -> None:
    found = TrainingModel(recipe(**padded(decoder=str(gemma))), corpus)
    ids = [found.tokenizer(tag, add_special_tokens=False).input_ids for tag in TAGS]
    assert all(len(one) == 1 for one in ids)
    assert len({one[0] for one in ids}) == len(TAGS)
    assert found.decoder.config.vocab_size == len(found.tokenizer)


def test_spare_embeddings_are_used_for_the_tags(corpus: Corpus, tmp_path: Path) -> None:
    folder = saved_gemma(tmp_path, corpus, spare=100)
    size = Gemma3ForCausalLM.from_pretrained(folder).config.vocab_size
    found = TrainingModel(recipe(**padded(decoder=str(folder))), corpus)
    assert found.decoder.config.vocab_size == size > len(found.tokenizer)


@pytest.mark.parametrize(
    "change",
    [{"d_model": 64}, {"encoder_layers": 2}, {"max_source_positions": 300}, {"num_mel_bins": 80}],
    ids=str,
)
def test_an_encoder_of_another_shape_is_an_error(
    corpus: Corpus, tmp_path: Path, change: dict[str, int]
) -> None:
    folder = saved_whisper(tmp_path, **change)
    with pytest.raises(RecipeError, match=r"does not fit esrt-padded: .+") as caught:
        TrainingModel(recipe(**padded(encoder=str(folder))), corpus)
    assert "\n" not in str(caught.value)


def test_a_decoder_of_another_width_is_an_error(corpus: Corpus, tmp_path: Path) -> None:
    folder = saved_gemma(tmp_path, corpus, width=48)
    with pytest.raises(RecipeError, match="has width 48, but esrt-padded needs 32"):
        TrainingModel(recipe(**padded(decoder=str(folder))), corpus)


def test_the_loss_on_tokens_needs_tokens_that_follow_time(corpus: Corpus) -> None:
    with pytest.raises(RecipeError, match=r"unlike esrt-padded's\. Set piece_ctc: 0"):
        TrainingModel(recipe(**padded(piece_ctc=0.3)), corpus)


def test_the_edge_of_the_initial_checkpoint_is_loaded(
    model: TrainingModel, corpus: Corpus, tmp_path: Path
) -> None:
    edge = random_checkpoint(SMALL, seed=9).edge_model()
    save_checkpoint(tmp_path, edge, model.decoder, model.tokenizer, torch.float32)
    found = TrainingModel(recipe(initial=tmp_path), corpus)
    assert same(found.edge.state_dict(), edge.state_dict())


def test_a_checkpoint_of_another_model_is_an_error(
    model: TrainingModel, corpus: Corpus, tmp_path: Path
) -> None:
    edge = random_checkpoint(PADDED).edge_model()
    save_checkpoint(tmp_path, edge, model.decoder, model.tokenizer, torch.float32)
    with pytest.raises(CheckpointError, match="do not fit the configuration"):
        TrainingModel(recipe(initial=tmp_path), corpus)


@pytest.mark.parametrize(
    "frozen", [["encoder"], ["q_former", "mlp"], ["decoder"], ["encoder", "decoder"]], ids=str
)
def test_frozen_parts_do_not_change(corpus: Corpus, tmp_path: Path, frozen: list[str]) -> None:
    run = TrainingRun(recipe(frozen=frozen), corpus, tmp_path)
    model = run.model
    parts = {"decoder": model.decoder} | {
        name: getattr(model.edge, name) for name in ("encoder", "q_former", "mlp")
    }
    before = {name: copied(part) for name, part in parts.items()}
    for _ in range(2):
        run.train_step(batch_of(model, corpus, Task.SRT, Task.ASR))
    still = {name for name, part in parts.items() if same(before[name], part.state_dict())}
    assert still == set(frozen)
