"""Batches: log-mels, prompts and targets, padding, and CTC targets."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from esrt.arrays import Float32Array
from esrt.features import log_mel_features
from esrt.languages import direction
from esrt.prompt import separator, target_text
from tests.training.helpers import PADDED, SMALL, recipe
from training.corpus.build import Corpus
from training.data import IGNORE, Batch, Collator, Stream, alphabet_of, mel_batch
from training.recipe import Augmentation, Task
from training.sampling import Item

HOP = 160


@pytest.fixture(scope="module")
def collator(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> Collator:
    return Collator(SMALL, tokenizer, alphabet_of(corpus.examples))


def items_of(corpus: Corpus, *tasks: Task) -> list[Item]:
    """Make an item of each task, in different languages, into Turkish or English."""
    return [
        Item(example, "eng" if example.language == "tur" else "tur", task)
        for example, task in zip(corpus.examples, tasks, strict=False)
    ]


def speech_of(corpus: Corpus, items: list[Item]) -> list[Float32Array]:
    return [corpus.speech(item.example) for item in items if item.task is not Task.SMT]


def parts(item: Item) -> tuple[str, str, str]:
    """Return separator, transcript and translation."""
    tags = separator(*direction(item.example.language, item.target))
    return tags, item.example.texts[item.example.language], item.example.texts[item.target]


def decode(tokenizer: PreTrainedTokenizerFast, row: Tensor) -> str:
    text: str = tokenizer.decode(row[row != IGNORE].tolist())
    return text


def test_log_mels_are_padded_at_the_end(corpus: Corpus) -> None:
    audio = [corpus.speech(example) for example in corpus.examples[:5]]
    mel, frames = mel_batch(SMALL, audio)
    assert mel.shape == (5, 128, int(frames.max()))
    assert mel.dtype == torch.float32
    for row, count, one in zip(mel.numpy(), frames.tolist(), audio, strict=True):
        assert count % 8 == 0
        assert count - 8 < len(one) / HOP <= count
        np.testing.assert_array_equal(
            row[:, :count], log_mel_features(one, mel_bins=128, frame_multiple=8)
        )
        assert not row[:, count:].any()


def test_padded_models_get_one_length(corpus: Corpus) -> None:
    audio = [corpus.speech(corpus.examples[0]), np.tile(corpus.speech(corpus.examples[1]), 20)]
    mel, frames = mel_batch(PADDED, audio)
    assert mel.shape == (2, 128, 200)
    assert frames.tolist() == [200, 200]
    short = log_mel_features(audio[0], mel_bins=128, frame_multiple=2, padded_seconds=2.0)
    np.testing.assert_array_equal(mel[0].numpy(), short)


def test_no_audio_is_an_empty_batch() -> None:
    mel, frames = mel_batch(SMALL, [])
    assert mel.shape == (0, 128, 0)
    assert frames.shape == (0,)


def test_the_srt_target_is_transcript_and_translation(
    corpus: Corpus, collator: Collator, tokenizer: PreTrainedTokenizerFast
) -> None:
    items = items_of(corpus, *[Task.SRT] * 12)
    batch = collator(items, speech_of(corpus, items))
    for item, labels in zip(items, batch.labels, strict=True):
        _, transcript, translation = parts(item)
        pair = direction(item.example.language, item.target)
        expected = target_text(transcript, translation, *pair)
        assert decode(tokenizer, labels) == expected + tokenizer.eos_token


def test_the_asr_target_ends_with_the_separator(
    corpus: Corpus, collator: Collator, tokenizer: PreTrainedTokenizerFast
) -> None:
    items = items_of(corpus, *[Task.ASR] * 12)
    batch = collator(items, speech_of(corpus, items))
    for item, labels in zip(items, batch.labels, strict=True):
        tags, transcript, _ = parts(item)
        assert decode(tokenizer, labels) == transcript + tags
    assert not (batch.labels == tokenizer.eos_token_id).any()


def test_the_smt_prompt_contains_the_transcript(
    corpus: Corpus, collator: Collator, tokenizer: PreTrainedTokenizerFast
) -> None:
    items = items_of(corpus, *[Task.SMT] * 12)
    batch = collator(items, [])
    for item, text, labels in zip(items, batch.text, batch.labels, strict=True):
        tags, transcript, translation = parts(item)
        assert decode(tokenizer, labels) == translation + tokenizer.eos_token
        first = int((labels != IGNORE).nonzero()[0])
        assert tokenizer.decode(text[:first].tolist()) == transcript + tags
    assert (
        batch.speech.shape[0] == len(batch.frames) == len(batch.letters) == len(batch.pieces) == 0
    )


def test_prompt_and_padding_have_no_loss(
    corpus: Corpus, collator: Collator, tokenizer: PreTrainedTokenizerFast
) -> None:
    items = items_of(corpus, Task.SRT, Task.SRT, Task.ASR, Task.SMT, Task.SMT)
    batch = collator(items, speech_of(corpus, items))
    assert batch.text.shape == batch.labels.shape
    for item, text, labels in zip(items, batch.text, batch.labels, strict=True):
        counted = labels != IGNORE
        assert torch.equal(text[counted], labels[counted])
        first, last = counted.nonzero()[[0, -1], 0].tolist()
        assert counted[first : last + 1].all()
        assert (text[last + 1 :] == tokenizer.pad_token_id).all()
        if item.task is not Task.SMT:
            assert tokenizer.decode(text[:first].tolist()) == parts(item)[0]


def test_ctc_targets_are_the_transcripts_characters_and_tokens(
    corpus: Corpus, collator: Collator, tokenizer: PreTrainedTokenizerFast
) -> None:
    items = items_of(corpus, *[Task.SRT] * 10, Task.SMT, Task.SMT)
    batch = collator(items, speech_of(corpus, items))
    transcripts = [parts(item)[1] for item in items[:10]]
    alphabet = alphabet_of(corpus.examples)
    letters = batch.letters.split(batch.letter_counts.tolist())
    spelled = ["".join(alphabet[number - 1] for number in row) for row in letters]
    assert spelled == transcripts  # 0 is the blank
    pieces = batch.pieces.split(batch.piece_counts.tolist())
    assert [tokenizer.decode(row.tolist()) for row in pieces] == transcripts


def test_the_alphabet_has_every_character_once(corpus: Corpus) -> None:
    alphabet = alphabet_of(corpus.examples)
    assert list(alphabet) == sorted(set(alphabet))
    assert set(alphabet) == {c for e in corpus.examples for t in e.texts.values() for c in t}


TASKS = {"until": 1, "tasks": {"asr": 0.3, "smt": 0.3, "srt": 0.4}}


def batches(
    corpus: Corpus, collator: Collator, seed: int, count: int = 12, **changes: object
) -> list[Batch]:
    settings = recipe(stages=[TASKS], **changes)
    stream = Stream(corpus, settings, settings.stages[0], collator, seed)
    return list(itertools.islice(stream, count))


def test_a_stream_mixes_the_stages_tasks(
    corpus: Corpus, collator: Collator, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = batches(corpus, collator, 0)
    assert {len(batch.text) for batch in found} == {4}
    spoken = [len(batch.frames) for batch in found]
    assert 0 < sum(spoken) < 4 * len(found)
    for batch in found:
        assert batch.speech.shape[0] == len(batch.letter_counts) == len(batch.frames)
        # Items with speech come first; their prompt is two tags.
        prompts = [int((labels != IGNORE).nonzero()[0]) for labels in batch.labels]
        assert [count == 2 for count in prompts] == [n < len(batch.frames) for n in range(4)]


def test_a_stream_follows_its_seed(corpus: Corpus, collator: Collator) -> None:
    everything = Augmentation(noise=1, reverberation=1, narrow_band=1, gain=6)

    def first(seed: int) -> list[Batch]:
        return batches(corpus, collator, seed, 4, augmentation=everything)

    for one, again in zip(first(5), first(5), strict=True):
        assert all(torch.equal(value, vars(again)[name]) for name, value in vars(one).items())
    assert any(
        one.text.shape != other.text.shape or not torch.equal(one.text, other.text)
        for one, other in zip(first(5), first(6), strict=True)
    )


def test_augmentation_changes_only_the_audio(corpus: Corpus, collator: Collator) -> None:
    plain = batches(corpus, collator, 0, 4)
    noisy = batches(corpus, collator, 0, 4, augmentation=Augmentation(noise=1))
    for one, other in zip(plain, noisy, strict=True):
        assert torch.equal(one.text, other.text)
        assert torch.equal(one.frames, other.frames)
        assert one.speech.shape == other.speech.shape
        if one.speech.numel():
            assert not torch.allclose(one.speech, other.speech, atol=1e-3)


def test_all_tensors_of_a_batch_move(corpus: Corpus, collator: Collator) -> None:
    (batch,) = batches(corpus, collator, 0, 1)
    moved = batch.to(torch.device("meta"))
    assert {value.device.type for value in vars(moved).values()} == {"meta"}
