"""Batches of log-mels and token ids from a built corpus."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from esrt.languages import LANGUAGES
from esrt.prompt import separator, target_text
from training.corpus.build import Corpus, Example

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """A training batch.

    ``mel`` (batch, 128, frames) and ``frames`` (batch,) go into the edge model; ``text`` (batch,
    length) is prompt and target; ``labels`` equals it where the loss counts and is -100
    elsewhere; ``letters`` and ``pieces`` are the transcript's UTF-8 bytes and tokens, one row
    after the other, for the two CTC losses, with their lengths.
    """

    mel: Tensor
    frames: Tensor
    text: Tensor
    labels: Tensor
    letters: Tensor
    letter_counts: Tensor
    pieces: Tensor
    piece_counts: Tensor


def batches(corpus: Corpus, size: int, random: Random) -> Iterator[tuple[list[Example], list[str]]]:
    """One pass over the corpus: examples of like length together, each with a random target."""
    order = list(range(len(corpus.examples)))
    random.shuffle(order)
    groups: list[list[int]] = []
    for start in range(0, len(order), 50 * size):
        window = sorted(order[start : start + 50 * size], key=lambda i: corpus.examples[i].frames)
        groups += [window[i : i + size] for i in range(0, len(window), size)]
    random.shuffle(groups)
    for group in groups:
        examples = [corpus.examples[i] for i in group]
        targets = [
            random.choice([code for code in example.texts if code != example.language])
            for example in examples
        ]
        yield examples, targets


def mel_batch(corpus: Corpus, examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Log-mels padded to the longest, (batch, 128, frames), and the frames of each."""
    frames = torch.tensor([example.frames for example in examples])
    mels = [torch.from_numpy(corpus.log_mel(example).astype(np.float32)) for example in examples]
    return pad_sequence(mels, batch_first=True).transpose(1, 2), frames


def make_batch(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    examples: list[Example],
    targets: list[str],
    translate: bool,
) -> Batch:
    """Collate; without ``translate`` the target ends with the separator: recognition alone."""
    mel, frames = mel_batch(corpus, examples)
    texts, labels, letters, pieces = [], [], [], []
    for example, target in zip(examples, targets, strict=True):
        pair = LANGUAGES[example.language], LANGUAGES[target]
        prompt = _ids(tokenizer, separator(*pair))
        transcript = example.texts[example.language]
        translation = example.texts[target] if translate else ""
        ids = _ids(tokenizer, target_text(transcript, translation, *pair))
        if translate:
            ids.append(tokenizer.eos_token_id)
        texts.append(torch.tensor(prompt + ids))
        labels.append(torch.tensor([IGNORE] * len(prompt) + ids))
        letters.append(torch.tensor(list(transcript.encode())))
        pieces.append(torch.tensor(_ids(tokenizer, transcript)))
    return Batch(
        mel,
        frames,
        pad_sequence(texts, batch_first=True, padding_value=tokenizer.pad_token_id),
        pad_sequence(labels, batch_first=True, padding_value=IGNORE),
        torch.cat(letters) + 1,
        torch.tensor([len(row) for row in letters]),
        torch.cat(pieces),
        torch.tensor([len(row) for row in pieces]),
    )


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids
