"""Inverter: an attacker that learns to reconstruct log-mel, and so speech, from packets."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.privacy.representations import Sequences
from benchmarks.privacy.trials import Rows
from esrt.arrays import Float32Array

# Whisper's log-mel is (log10 of power + 4) / 4, so a difference of 1 is 40 dB.
_DECIBEL = 40
_BATCH = 32


@dataclass(frozen=True)
class Inversion:
    """Root mean square errors over the attacked utterances, in dB.

    Attributes:
        error_db: error of the estimates.
        baseline_db: error of each mel bin's mean over the training utterances, which needs no
            packet.
        voice_error_db: error of the estimates' means over each utterance, which depend more on the
            voice and less on the words.
        voice_baseline_db: error of the baseline's means over each utterance.
    """

    error_db: float
    baseline_db: float
    voice_error_db: float
    voice_baseline_db: float


class _Inverter(nn.Module):
    def __init__(self, width: int, frames: int, bins: int) -> None:
        super().__init__()
        channels = 256
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
        """Map (batch, tokens, width) to (batch, tokens * frames, bins)."""
        mel: Tensor = self.layers(tokens.transpose(1, 2)).transpose(1, 2)
        return mel.reshape(len(tokens), -1, self.bins)


def invert(
    packets: Sequences, mel: Sequences, training: Rows, attacked: Rows, steps: int, seed: int
) -> tuple[Sequences, Inversion]:
    """Train an inverter on the training utterances, then estimate the log-mel of all utterances.

    Args:
        packets: decoded features, (tokens, width) each.
        mel: log-mels of the same speech, (frames, bins) each; frames are a multiple of tokens.
        training: rows to train on.
        attacked: rows to measure the errors on.
        steps: training steps.
        seed: seed of weights and batches.
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
        target = _padded(mel[row] - mean for row in rows)
        loss = (model(_padded(packets[row] for row in rows)) - target).square()
        loss = loss[target.abs().sum(-1) > 0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        estimates = [
            model(torch.from_numpy(packets[row])[None])[0].numpy() + mean
            for row in range(len(packets))
        ]
    true = {row: mel[row] for row in attacked}
    return Sequences.of(estimates, mel.stride), Inversion(
        _error(estimates[row] - true[row] for row in attacked),
        _error(mean - true[row] for row in attacked),
        _error((estimates[row] - true[row]).mean(axis=0) for row in attacked),
        _error((mean - true[row]).mean(axis=0) for row in attacked),
    )


def _padded(rows: Iterator[Float32Array]) -> Tensor:
    return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)


def _error(differences: Iterator[Float32Array]) -> float:
    values = np.concatenate([difference.ravel() for difference in differences])
    return _DECIBEL * float(np.sqrt(np.square(values, dtype=np.float64).mean()))
