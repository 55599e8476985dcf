"""An attacker that learns to turn packets back into log-mel, and so into sound."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.privacy.attackers import Rows
from benchmarks.privacy.representations import Sequences
from esrt.arrays import Float32Array

# Whisper's log-mel is (log10 of power + 4) / 4: one is 40 dB.
_DECIBEL = 40
_BATCH = 32


@dataclass(frozen=True)
class Inversion:
    """Errors over the attacked utterances, root mean square in dB.

    ``error_db`` is the guess's, ``baseline_db`` that of each mel bin's mean over the training
    utterances, which needs no packet. The ``voice`` errors are those of the average over an
    utterance of each bin, which holds more of the voice and less of the words.
    """

    error_db: float
    baseline_db: float
    voice_error_db: float
    voice_baseline_db: float


class _Inverter(nn.Module):
    def __init__(self, width: int, frames: int, bins: int, channels: int = 256) -> None:
        super().__init__()
        self.bins = bins
        self.layers = nn.Sequential(
            nn.BatchNorm1d(width, affine=False),
            nn.Conv1d(width, channels, 5, padding=2),
            nn.GELU(),
            nn.Conv1d(channels, channels, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(channels, frames * bins, 1),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) to (batch, tokens * frames, bins)."""
        guessed: Tensor = self.layers(tokens.transpose(1, 2)).transpose(1, 2)
        return guessed.reshape(len(tokens), -1, self.bins)


def invert(
    packets: Sequences, mel: Sequences, training: Rows, attacked: Rows, steps: int, seed: int
) -> tuple[Sequences, Inversion]:
    """Train an inverter on the training utterances, then guess every utterance's log-mel.

    Args:
        packets: features as the cloud sees them, (tokens, width) each.
        mel: the log-mels behind them, (frames, bins) each, whose length is a multiple of theirs.
        training: rows to train on.
        attacked: rows that the errors are measured on.
        steps: training steps.
        seed: of weights and batches.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    frames = len(mel[0]) // len(packets[0])
    mean = np.concatenate([mel[row] for row in training]).mean(axis=0)
    model = _Inverter(packets.values.shape[1], frames, len(mean))
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        rows = random.choice(training, _BATCH)
        wanted = _padded(mel[row] - mean for row in rows)
        loss = (model(_padded(packets[row] for row in rows)) - wanted).square()
        loss = loss[wanted.abs().sum(-1) > 0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        guessed = [
            model(torch.from_numpy(packets[row])[None])[0].numpy() + mean
            for row in range(len(packets))
        ]
    heard = {row: mel[row] for row in attacked}
    return Sequences.of(guessed, mel.stride), Inversion(
        _error(guessed[row] - heard[row] for row in attacked),
        _error(mean - heard[row] for row in attacked),
        _error((guessed[row] - heard[row]).mean(axis=0) for row in attacked),
        _error((mean - heard[row]).mean(axis=0) for row in attacked),
    )


def _padded(rows: Iterator[Float32Array]) -> Tensor:
    return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)


def _error(differences: Iterator[Float32Array]) -> float:
    values = np.concatenate([difference.ravel() for difference in differences])
    return _DECIBEL * float(np.sqrt(np.square(values, dtype=np.float64).mean()))
