"""Pretrained speaker encoder as an attacker: GE2E (Wan et al., arXiv 1710.10467) of resemblyzer.

Of the package resemblyzer only the weights are used. The encoder reads 40 mel bins of power, with
the windows of Whisper's log-mel, so it attacks log-mel and whatever is converted back to it.
"""

from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.privacy.attackers import Attack, AttackSplit, Embedding, lda
from benchmarks.privacy.representations import Sequences
from esrt.arrays import Float32Array
from esrt.errors import EsrtError
from esrt.features import mel_filters

PACKAGE = "resemblyzer"
_WEIGHTS = "resemblyzer/pretrained.pt"
_BINS, _WIDTH, _LAYERS = 40, 256, 3
# Frames of a window, of the step between windows, and least share of the last window that is
# speech, as in the package.
_WINDOW, _STEP, _COVERAGE = 160, 77, 0.75


class SpeakerEncoder(nn.Module):
    """LSTM whose last state is the embedding of a window of speech.

    Raises:
        EsrtError: the package is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(_BINS, _WIDTH, _LAYERS, batch_first=True)
        self.linear = nn.Linear(_WIDTH, _WIDTH)
        try:
            path = distribution(PACKAGE).locate_file(_WEIGHTS)
        except PackageNotFoundError as error:
            raise EsrtError(
                f"The package {PACKAGE} is not installed.", "Run: make voices."
            ) from error
        state = torch.load(str(path), map_location="cpu", weights_only=True)["model_state"]
        # The package's training has two more parameters, of its loss.
        self.load_state_dict({name: state[name] for name in self.state_dict()})
        self.eval()

    @torch.inference_mode()
    def forward(self, mel: Tensor) -> Tensor:
        """Map power in mel bins, (batch, frames, 40), to embeddings of length 1, (batch, 256)."""
        _, (hidden, _) = self.lstm(mel)
        return nn.functional.normalize(self.linear(hidden[-1]).relu())

    def embed(self, log_mel: Float32Array) -> Embedding:
        """Embed an utterance: the mean over its windows, of length 1, shape (256,).

        Args:
            log_mel: Whisper's log-mel, (frames, mel bins).
        """
        power = np.power(10, 4 * np.float64(log_mel) - 4) @ _conversion(log_mel.shape[1])
        frames = len(power)
        starts = list(range(0, max(1, frames - _WINDOW + _STEP), _STEP))
        if len(starts) > 1 and frames - starts[-1] < _COVERAGE * _WINDOW:
            starts.pop()
        padded = np.pad(np.maximum(power, 0), ((0, starts[-1] + _WINDOW), (0, 0)))
        windows = np.stack([padded[start : start + _WINDOW] for start in starts])
        mean = self(torch.from_numpy(windows.astype(np.float32))).double().numpy().mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean))


def attack_pretrained(sequences: Sequences, split: AttackSplit) -> dict[str, Attack]:
    """Compare embeddings of the pretrained encoder, and embeddings after `lda`.

    Args:
        sequences: log-mels, (frames, mel bins) each.
        split: training and attacked utterances.

    Raises:
        EsrtError: the package is not installed.
    """
    encoder = SpeakerEncoder()
    training, attacked = (
        np.stack([encoder.embed(sequences[row]) for row in rows])
        for rows in (split.training, split.attacked)
    )
    names = np.unique(split.speaker)
    means = np.stack([training[split.speaker == name].mean(axis=0) for name in names])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return {
        "pretrained": Attack(attacked, names[(attacked @ means.T).argmax(axis=1)]),
        "pretrained + LDA": lda(training, split.speaker, attacked),
    }


@cache
def _conversion(bins: int) -> Embedding:
    """Matrix (bins, 40) from power in Whisper's mel bins to power in the encoder's."""
    return np.asarray(np.linalg.pinv(mel_filters(bins).T) @ mel_filters(_BINS).T, np.float64)
