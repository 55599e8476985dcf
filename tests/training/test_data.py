"""Batches: what the model hears, what it must write, and what does not count."""

from random import Random

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from esrt.languages import direction
from esrt.prompt import separator, target_text
from training.corpus.build import Corpus, Example
from training.data import IGNORE, batches, make_batch, mel_batch

SIZE = 5


def first(corpus: Corpus) -> tuple[list[Example], list[str]]:
    return next(batches(corpus, SIZE, Random(0)))


def test_a_pass_has_every_utterance_once(corpus: Corpus) -> None:
    passed = list(batches(corpus, SIZE, Random(0)))
    starts = [example.start for examples, _ in passed for example in examples]
    assert sorted(starts) == [example.start for example in corpus.examples]
    assert all(len(examples) == len(targets) <= SIZE for examples, targets in passed)
    assert len(passed) == -(-len(corpus.examples) // SIZE)


def test_targets_are_other_languages(corpus: Corpus) -> None:
    directions = {
        (example.language, target)
        for seed in range(20)
        for examples, targets in batches(corpus, SIZE, Random(seed))
        for example, target in zip(examples, targets, strict=True)
    }
    assert len(directions) == 4 * 3
    assert all(source != target for source, target in directions)


def test_batches_follow_the_seed(corpus: Corpus) -> None:
    assert first(corpus) == first(corpus)
    assert first(corpus) != next(batches(corpus, SIZE, Random(1)))


def test_batches_hold_like_lengths(corpus: Corpus) -> None:
    spreads = [
        max(e.frames for e in examples) - min(e.frames for e in examples)
        for examples, _ in batches(corpus, SIZE, Random(0))
    ]
    lengths = [example.frames for example in corpus.examples]
    assert np.mean(spreads) < (max(lengths) - min(lengths)) / 2


def test_log_mels_are_padded_at_the_end(corpus: Corpus) -> None:
    examples, _ = first(corpus)
    mel, frames = mel_batch(corpus, examples)
    assert mel.shape == (SIZE, 128, max(example.frames for example in examples))
    assert mel.dtype == torch.float32
    assert frames.tolist() == [example.frames for example in examples]
    for row, example in zip(mel.numpy(), examples, strict=True):
        np.testing.assert_array_equal(row[:, : example.frames].T, corpus.log_mel(example))
        assert not row[:, example.frames :].any()


def test_labels_are_the_target_and_ignore_prompt_and_padding(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast
) -> None:
    examples, targets = first(corpus)
    batch = make_batch(corpus, tokenizer, examples, targets, translate=True)
    assert batch.text.shape == batch.labels.shape
    for row, (example, code) in enumerate(zip(examples, targets, strict=True)):
        pair = direction(example.language, code)
        counted = batch.labels[row] != IGNORE
        assert counted.nonzero()[0].item() == 2  # two tags of prompt
        written = tokenizer.decode(batch.labels[row][counted].tolist())
        target = target_text(example.texts[example.language], example.texts[code], *pair)
        assert written == target + tokenizer.eos_token
        assert torch.equal(batch.text[row][counted], batch.labels[row][counted])
        assert tokenizer.decode(batch.text[row][:2].tolist()) == separator(*pair)
        length = 2 + int(counted.sum())
        assert (batch.text[row][length:] == tokenizer.pad_token_id).all()


def test_recognition_alone_ends_with_the_separator(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast
) -> None:
    examples, targets = first(corpus)
    batch = make_batch(corpus, tokenizer, examples, targets, translate=False)
    for row, (example, code) in enumerate(zip(examples, targets, strict=True)):
        written = tokenizer.decode(batch.labels[row][batch.labels[row] != IGNORE].tolist())
        tags = separator(*direction(example.language, code))
        assert written == example.texts[example.language] + tags
    assert not (batch.labels == tokenizer.eos_token_id).any()


def test_ctc_targets_are_the_transcripts_bytes_and_tokens(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast
) -> None:
    examples, targets = first(corpus)
    batch = make_batch(corpus, tokenizer, examples, targets, translate=True)
    transcripts = [example.texts[example.language] for example in examples]
    letters = batch.letters.split(batch.letter_counts.tolist())
    assert [bytes((row - 1).tolist()).decode() for row in letters] == transcripts  # 0 is the blank
    pieces = batch.pieces.split(batch.piece_counts.tolist())
    assert [tokenizer.decode(row.tolist()) for row in pieces] == transcripts
