"""Batches of log-mels and token ids from a built corpus."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from esrt.arrays import Float32Array
from esrt.config import ModelConfig
from esrt.features import log_mel_features
from esrt.languages import LANGUAGES
from esrt.prompt import separator, target_text
from training.augment import augment
from training.corpus.build import Corpus, Example
from training.recipe import Recipe, Stage, Task
from training.sampling import Item, Sampler

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """A training batch of B items, of which the first A have speech.

    ``mel`` (A, 128, frames) and ``frames`` (A,) go into the edge model; ``text`` (B, length) is
    what the decoder reads after the features; ``labels`` (B, length) equals it where the loss
    counts and is -100 elsewhere; ``letters`` and ``pieces`` are the A transcripts' characters and
    tokens, one row after the other, for the two CTC losses, with their lengths. ``twin`` (A, 128,
    frames) are the log-mels of the same speech by one voice; A is 0 where the corpus has none.
    """

    mel: Tensor
    frames: Tensor
    text: Tensor
    labels: Tensor
    letters: Tensor
    letter_counts: Tensor
    pieces: Tensor
    piece_counts: Tensor
    twin: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


class Collator:
    """Makes batches: what the model hears, what it must write, and what does not count."""

    def __init__(
        self, config: ModelConfig, tokenizer: PreTrainedTokenizerFast, alphabet: str
    ) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._letters = {letter: 1 + number for number, letter in enumerate(alphabet)}

    def __call__(
        self,
        items: list[Item],
        audio: list[Float32Array],
        parallel_audio: Sequence[Float32Array] = (),
    ) -> Batch:
        """Collate.

        Args:
            items: those with speech first.
            audio: the speech of each item that has it, shape (samples,).
            parallel_audio: the same by one voice, if it is known; as long.
        """
        mel, frames = mel_batch(self._config, audio)
        targets = [written(self._tokenizer, item) for item in items]
        texts, labels = [text for text, _ in targets], [label for _, label in targets]
        transcripts = [item.example.texts[item.example.language] for item in items[: len(audio)]]
        letters = [torch.tensor([self._letters[letter] for letter in text]) for text in transcripts]
        pieces = [torch.tensor(_ids(self._tokenizer, text)) for text in transcripts]
        return Batch(
            mel,
            frames,
            pad_sequence(texts, batch_first=True, padding_value=self._tokenizer.pad_token_id),
            pad_sequence(labels, batch_first=True, padding_value=IGNORE),
            torch.cat(letters) if letters else torch.zeros(0, dtype=torch.long),
            torch.tensor([len(row) for row in letters], dtype=torch.long),
            torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.long),
            torch.tensor([len(row) for row in pieces], dtype=torch.long),
            mel_batch(self._config, parallel_audio)[0],
        )


def written(tokenizer: PreTrainedTokenizerFast, item: Item) -> tuple[Tensor, Tensor]:
    """What the decoder reads of an item as text, and its labels, `IGNORE` for what is given.

    Recognition ends after the separator; text-side translation is given all up to there.
    """
    pair = LANGUAGES[item.example.language], LANGUAGES[item.target]
    transcript = item.example.texts[item.example.language]
    translation = item.example.texts[item.target]
    if item.task is Task.SMT:
        given = _ids(tokenizer, target_text(transcript, "", *pair))
        asked = [*_ids(tokenizer, translation), tokenizer.eos_token_id]
    elif item.task is Task.ASR:
        given = _ids(tokenizer, separator(*pair))
        asked = _ids(tokenizer, target_text(transcript, "", *pair))
    else:
        given = _ids(tokenizer, separator(*pair))
        asked = _ids(tokenizer, target_text(transcript, translation, *pair))
        asked.append(tokenizer.eos_token_id)
    return torch.tensor(given + asked), torch.tensor([IGNORE] * len(given) + asked)


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


class Stream(IterableDataset[Batch]):
    """A stage's batches without end, sounds changed at random, the same for the same seed."""

    def __init__(
        self, corpus: Corpus, recipe: Recipe, stage: Stage, collator: Collator, seed: int
    ) -> None:
        self._corpus, self._recipe, self._stage = corpus, recipe, stage
        self._collator, self._seed = collator, seed

    def __iter__(self) -> Iterator[Batch]:
        """The batches."""
        corpus = self._corpus
        sampler = Sampler(corpus, self._recipe.balance, self._stage.tasks, Random(self._seed))
        random = np.random.default_rng(self._seed)
        for items in sampler.batches(self._recipe.batch):
            items.sort(key=lambda item: item.task is Task.SMT)
            examples = [item.example for item in items if item.task is not Task.SMT]
            audio = [
                augment(corpus.speech(example), self._recipe.augmentation, random)
                for example in examples
            ]
            parallel_audio = (
                [corpus.twin(example) for example in examples]
                if self._recipe.speaker_invariance
                else []
            )
            yield self._collator(items, audio, parallel_audio)


def mel_batch(config: ModelConfig, audio: Sequence[Float32Array]) -> tuple[Tensor, Tensor]:
    """Log-mels padded to the longest, (batch, 128, frames), and the frames of each."""
    mels = [
        torch.from_numpy(
            log_mel_features(
                one, frame_multiple=config.frame_multiple, padded_seconds=config.padded_seconds
            ).T
        )
        for one in audio
    ]
    if not mels:
        return torch.zeros(0, config.encoder.mel_bins, 0), torch.zeros(0, dtype=torch.long)
    frames = torch.tensor([len(mel) for mel in mels])
    return pad_sequence(mels, batch_first=True).transpose(1, 2), frames


def alphabet_of(examples: Iterable[Example]) -> str:
    """Every character of the examples' texts, in order: the classes of the letters' CTC."""
    return "".join(sorted({c for e in examples for text in e.texts.values() for c in text}))
