"""Attackers that learn to recognize speakers: a small TDNN, and LDA on statistics."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.privacy.representations import Sequences
from benchmarks.privacy.trials import Rows
from esrt.arrays import Float32Array

Embedding = NDArray[np.float64]


# Parameters of AM-softmax (Wang et al., arXiv 1801.05599).
_SCALE, _MARGIN = 30.0, 0.2
_LEARNING_RATE = 4e-3
_BATCH = 64
_CROP = 40  # longest training example, in steps of 40 ms or tokens
_SHRINK = 0.1
# Without regularization the network overfits and attacks packets worse.
_DROPOUT, _WEIGHT_DECAY = 0.3, 0.2


@dataclass(frozen=True)
class AttackSplit:
    """Rows of the training utterances with their speakers, and of the attacked utterances."""

    training: Rows
    speaker: Rows
    attacked: Rows


@dataclass(frozen=True)
class Attack:
    """Embeddings and predicted known speakers of the attacked utterances."""

    embedding: Embedding
    predicted_speaker: Rows


class Tdnn(nn.Module):
    """Time-delay network with statistics pooling, like an x-vector, and cosines to speakers."""

    def __init__(self, width: int, stride: int, speakers: int) -> None:
        super().__init__()
        channels = 128
        self.norm = nn.BatchNorm1d(width, affine=False)
        layers: list[nn.Module] = []
        for number, (inner, kernel, step, dilation) in enumerate(
            [(width, 5, stride, 1), (channels, 3, 1, 1), (channels, 3, 1, 2), (channels, 1, 1, 1)]
        ):
            outer = channels if number < 3 else 3 * channels
            padding = dilation * (kernel - 1) // 2
            layers += [
                nn.Conv1d(inner, outer, kernel, step, padding, dilation),
                nn.ReLU(),
                nn.BatchNorm1d(outer),
                nn.Dropout(_DROPOUT),
            ]
        self.layers = nn.Sequential(*layers)
        self.stride = stride
        self.attention = nn.Sequential(
            nn.Conv1d(3 * channels, 64, 1), nn.Tanh(), nn.Conv1d(64, 3 * channels, 1)
        )
        self.embedding = nn.Sequential(
            nn.BatchNorm1d(6 * channels),
            nn.Dropout(_DROPOUT),
            nn.Linear(6 * channels, 128),
            nn.BatchNorm1d(128),
        )
        self.speakers = nn.Parameter(torch.randn(speakers, 128))

    def forward(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """Map padded sequences (batch, steps, width) and their lengths to (batch, 128)."""
        hidden = self.layers(self.norm(sequences.transpose(1, 2)))
        steps = torch.arange(hidden.shape[-1])[None]
        valid = (steps < -(-lengths[:, None] // self.stride))[:, None]
        weight = self.attention(hidden).masked_fill(~valid, -1e4).softmax(-1)
        mean = (weight * hidden).sum(-1)
        spread = ((weight * hidden**2).sum(-1) - mean**2).clamp(min=1e-4).sqrt()
        embedded: Tensor = self.embedding(torch.cat([mean, spread], 1))
        return embedded

    def cosines(self, embedding: Tensor) -> Tensor:
        """Map embeddings (batch, 128) to cosines (batch, speakers)."""
        unit = nn.functional.normalize
        return unit(embedding) @ unit(self.speakers).T


def train_tdnn(
    sequences: Sequences, split: AttackSplit, steps: int, seed: int
) -> dict[str, Attack]:
    """Train a `Tdnn` on crops of the training utterances, then embed the attacked ones.

    Returns:
        Two attacks: by the embedding itself, and by `lda` on the embedding.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    names = np.unique(split.speaker)
    target = torch.from_numpy(np.searchsorted(names, split.speaker))
    model = Tdnn(sequences.values.shape[1], sequences.stride, len(names))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, steps)
    crop = _CROP * sequences.stride
    for _ in range(steps):
        rows = random.integers(0, len(split.training), _BATCH)
        crops = []
        for row in split.training[rows]:
            whole = sequences[row]
            start = random.integers(0, max(1, len(whole) - crop + 1))
            crops.append(whole[start : start + crop])
        cosines = model.cosines(model(*_padded(crops)))
        labels = nn.functional.one_hot(target[rows], len(names))
        loss = nn.functional.cross_entropy(_SCALE * (cosines - _MARGIN * labels), target[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    training, attacked = (
        _embed(model, sequences, rows) for rows in (split.training, split.attacked)
    )
    with torch.inference_mode():
        predicted = names[model.cosines(torch.from_numpy(attacked).float()).argmax(1).numpy()]
    return {
        f"TDNN {seed}": Attack(attacked, predicted),
        f"TDNN {seed} + LDA": lda(training, split.speaker, attacked),
    }


@torch.inference_mode()
def _embed(model: Tdnn, sequences: Sequences, rows: Rows) -> Embedding:
    model.eval()
    parts = (rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH))
    embeddings = [model(*_padded([sequences[row] for row in part])) for part in parts]
    return np.asarray(torch.cat(embeddings).double().numpy())


def attack_statistics(sequences: Sequences, split: AttackSplit) -> dict[str, Attack]:
    """Run `lda` on the mean and deviation of each utterance's values and of their changes."""
    training = np.stack([_statistics(sequences[row]) for row in split.training])
    attacked = np.stack([_statistics(sequences[row]) for row in split.attacked])
    return {"statistics + LDA": lda(training, split.speaker, attacked)}


def lda(training: Embedding, speaker: Rows, attacked: Embedding) -> Attack:
    """Linear discriminant analysis with a shrunk within-class covariance; cosines to the means."""
    mean, spread = training.mean(axis=0), training.std(axis=0) + 1e-6
    training, attacked = (training - mean) / spread, (attacked - mean) / spread
    names, place = np.unique(speaker, return_inverse=True)
    means = np.stack([training[place == number].mean(axis=0) for number in range(len(names))])
    inner = training - means[place]
    within = inner.T @ inner / len(inner)
    within += _SHRINK * np.trace(within) / len(within) * np.eye(len(within))
    values, vectors = np.linalg.eigh(within)
    whiten = vectors / np.sqrt(values)
    _, _, directions = np.linalg.svd(means @ whiten, full_matrices=False)
    project = whiten @ directions[: len(names) - 1].T
    embedding, centres = attacked @ project, means @ project
    unit = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    return Attack(embedding, names[(embedding @ unit.T).argmax(axis=1)])


def nearest_centroid(training: Embedding, speaker: Rows, attacked: Embedding) -> Attack:
    """Run `lda`, then compare distances, not cosines: with few features, magnitude matters."""
    projected = lda(training, speaker, np.concatenate([training, attacked]))
    scaled = projected.embedding / np.abs(projected.embedding).max()
    known, rest = scaled[: len(training)], scaled[len(training) :]
    names = np.unique(speaker)
    centres = np.stack([known[speaker == name].mean(axis=0) for name in names])
    distance = np.square(rest[:, None] - centres[None]).sum(axis=-1)
    # With a long last coordinate, a smaller distance is a larger cosine.
    lifted = np.concatenate([rest, np.full((len(rest), 1), 10.0)], axis=1)
    return Attack(lifted, names[distance.argmin(axis=1)])


def _statistics(sequence: Float32Array) -> Embedding:
    change = np.abs(np.diff(sequence, axis=0))
    parts = [sequence.mean(axis=0), sequence.std(axis=0), change.mean(axis=0), change.std(axis=0)]
    return np.concatenate(parts, dtype=np.float64)


def _padded(rows: list[Float32Array]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True), lengths
