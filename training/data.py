"""Batches of log-mels or encoder states, and of token ids, from a corpus."""

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
from training.corpus.build import NON_SPEECH, OPEN, Corpus, Example
from training.recipe import Recipe, Stage, Task
from training.sampling import Item, Sampler
from training.state_augmentation import augment_states
from training.state_corpus import StateCorpus

# Label of tokens without loss.
IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """A training batch of B items. The first A items have speech.

    Attributes:
        speech: (A, mel bins, frames), log-mels; or (A, frames / 2, encoder width), encoder states.
        frames: (A,), number of valid frames of the log-mels.
        text: (B, length), token ids that the decoder reads after the features.
        labels: (B, length), equal to ``text`` where the loss counts, else `IGNORE`.
        letters: characters of the A transcripts, concatenated: targets of their CTC loss.
            Characters outside of the alphabet are left out.
        letter_counts: (A,), number of characters of each transcript.
        pieces: tokens of the A transcripts, concatenated: targets of the Q-Former's CTC loss.
        piece_counts: (A,), number of tokens of each transcript.
        paired: (A,), whether an item has parallel speech by the reference voice.
        parallel: the parallel speech of those P items, in the form of ``speech``: (P, ...).
    """

    speech: Tensor
    frames: Tensor
    text: Tensor
    labels: Tensor
    letters: Tensor
    letter_counts: Tensor
    pieces: Tensor
    piece_counts: Tensor
    paired: Tensor
    parallel: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


class Collator:
    """Collator of items and audio or states into padded batches with labels."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: PreTrainedTokenizerFast,
        alphabet: str,
        states: bool = False,
    ) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._states = states
        self._letters = {letter: 1 + number for number, letter in enumerate(alphabet)}

    def __call__(
        self,
        items: list[Item],
        audio: list[Float32Array],
        parallel: Sequence[Float32Array | None] = (),
    ) -> Batch:
        """Collate.

        Args:
            items: items with speech first.
            audio: audio of each item with speech, shape (samples,), or its encoder states, shape
                (positions, encoder width).
            parallel: the same speech by the reference voice, of the same lengths, or ``None``; may
                be empty if no item has any.
        """
        batch_of = state_batch if self._states else mel_batch
        speech, frames = batch_of(self._config, audio)
        paired = [one is not None for one in parallel] or [False] * len(audio)
        targets = [self._text_and_labels(item) for item in items]
        texts, labels = [text for text, _ in targets], [label for _, label in targets]
        transcripts = [item.example.texts[item.example.language] for item in items[: len(audio)]]
        letters, letter_counts = _concatenate(
            [
                [self._letters[letter] for letter in text if letter in self._letters]
                for text in transcripts
            ]
        )
        pieces, piece_counts = _concatenate([self._ids(text) for text in transcripts])
        return Batch(
            speech,
            frames,
            pad_sequence(texts, batch_first=True, padding_value=self._tokenizer.pad_token_id),
            pad_sequence(labels, batch_first=True, padding_value=IGNORE),
            letters,
            letter_counts,
            pieces,
            piece_counts,
            torch.tensor(paired, dtype=torch.bool),
            batch_of(self._config, [one for one in parallel if one is not None])[0],
        )

    def _text_and_labels(self, item: Item) -> tuple[Tensor, Tensor]:
        """Tokenize an item's prompt and target; the labels of the prompt are `IGNORE`.

        The target of recognition ends with the separator. The prompt of text translation contains
        the transcript and the separator. A missing translation is empty; so is the whole answer to
        a prompt that names a wrong language.
        """
        pair = LANGUAGES[item.named or item.example.language], LANGUAGES[item.target]
        texts = {} if item.named else item.example.texts
        transcript = texts.get(item.example.language, "")
        translation = texts.get(item.target, "")
        recognized = target_text(transcript, "", *pair)
        end = [self._tokenizer.eos_token_id]
        if item.task is Task.SMT:
            prompt, target = self._ids(recognized), self._ids(translation) + end
        elif item.task is Task.ASR:
            prompt, target = self._ids(separator(*pair)), self._ids(recognized)
        else:
            prompt = self._ids(separator(*pair))
            target = self._ids(target_text(transcript, translation, *pair)) + end
        return torch.tensor(prompt + target), torch.tensor([IGNORE] * len(prompt) + target)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids


def _concatenate(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Concatenate rows, and count the numbers of each."""
    flat = [number for row in rows for number in row]
    counts = [len(row) for row in rows]
    return torch.tensor(flat, dtype=torch.long), torch.tensor(counts, dtype=torch.long)


class Stream(IterableDataset[Batch]):
    """Endless batches of a curriculum stage, with random augmentation, determined by a seed."""

    def __init__(
        self,
        corpus: Corpus | StateCorpus,
        recipe: Recipe,
        stage: Stage,
        collator: Collator,
        seed: int,
    ) -> None:
        self._corpus, self._recipe, self._stage = corpus, recipe, stage
        self._collator, self._seed = collator, seed

    def __iter__(self) -> Iterator[Batch]:
        """Draw batches, without end."""
        corpus, recipe = self._corpus, self._recipe
        sampler = Sampler(corpus, recipe.balance, self._stage.tasks, Random(self._seed))
        random = np.random.default_rng(self._seed)
        for items in sampler.batches(recipe.batch):
            items.sort(key=lambda item: item.task is Task.SMT)
            examples = [item.example for item in items if item.task is not Task.SMT]
            speech = [corpus.speech(example) for example in examples]
            if isinstance(corpus, StateCorpus):
                settings = recipe.state_augmentation
                speech = [augment_states(one, settings, random) for one in speech]
            else:
                speech = [augment(one, recipe.augmentation, random) for one in speech]
            parallel = (
                [corpus.parallel_speech(example) for example in examples]
                if recipe.speaker_invariance
                else []
            )
            yield self._collator(items, speech, parallel)


def mel_batch(config: ModelConfig, audio: Sequence[Float32Array]) -> tuple[Tensor, Tensor]:
    """Compute log-mels padded to the longest, (batch, mel bins, frames), and valid frames."""
    mels = [
        torch.from_numpy(
            log_mel_features(
                samples,
                mel_bins=config.encoder.mel_bins,
                frame_multiple=config.frame_multiple,
                padded_seconds=config.padded_seconds,
            ).T
        )
        for samples in audio
    ]
    if not mels:
        return torch.zeros(0, config.encoder.mel_bins, 0), torch.zeros(0, dtype=torch.long)
    frames = torch.tensor([len(mel) for mel in mels])
    return pad_sequence(mels, batch_first=True).transpose(1, 2), frames


def state_batch(config: ModelConfig, states: Sequence[Float32Array]) -> tuple[Tensor, Tensor]:
    """Pad states to the longest, (batch, positions, encoder width), and count valid mel frames."""
    if not states:
        return torch.zeros(0, 0, config.encoder.width), torch.zeros(0, dtype=torch.long)
    rows = [torch.from_numpy(row) for row in states]
    return pad_sequence(rows, batch_first=True), 2 * torch.tensor([len(row) for row in rows])


def alphabet_of(examples: Iterable[Example]) -> str:
    """Collect the distinct characters of the domain's texts, sorted: the classes of their CTC."""
    texts = (e.texts for e in examples if e.kind not in (OPEN, NON_SPEECH))
    return "".join(sorted({c for by_language in texts for t in by_language.values() for c in t}))
