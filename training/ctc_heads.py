"""Auxiliary CTC heads of a run, kept beside its checkpoint.

Runs that continue the checkpoint start from them. The head of characters also scores transcripts.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from esrt.files import replace_file

HEADS_FILE = "ctc_heads.safetensors"
_LEAST_AGREEMENT = -1e4


def save_heads(
    folder: Path, letters: nn.Linear | None, pieces: nn.Linear | None, alphabet: str
) -> None:
    """Write the heads that a run has, in float16.

    Args:
        folder: folder of the checkpoint.
        letters: head of characters; its outputs are frames of a blank and the alphabet.
        pieces: head of the decoder's tokens.
        alphabet: characters of the first head.
    """
    tensors = {
        f"{name}.{key}": tensor.detach().half().contiguous()
        for name, head in (("letters", letters), ("pieces", pieces))
        if head is not None
        for key, tensor in head.state_dict().items()
    }
    with replace_file(folder / HEADS_FILE) as partial:
        save_file(tensors, partial, metadata={"alphabet": json.dumps(alphabet)})


@torch.no_grad()
def load_heads(
    folder: Path, letters: nn.Linear | None, pieces: nn.Linear | None, alphabet: str
) -> None:
    """Copy weights of saved heads, if there are any, into new ones.

    Characters that the saved alphabet lacks keep their new weights.

    Args:
        folder: folder of the checkpoint.
        letters: head of characters.
        pieces: head of the decoder's tokens; ``None`` as well if its tokenizer is another one.
        alphabet: characters of the first head.
    """
    path = folder / HEADS_FILE
    if not path.is_file():
        return
    with safe_open(path, "pt") as file:
        saved = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        known: str = json.loads(file.metadata()["alphabet"])
    if letters is not None and "letters.weight" in saved:
        places = {character: 1 + number for number, character in enumerate(known)}
        pairs = [(0, 0)] + [
            (1 + number, places[character])
            for number, character in enumerate(alphabet)
            if character in places
        ]
        new, old = torch.tensor(pairs).T
        _by_frame(letters.weight, alphabet)[:, new] = _by_frame(saved["letters.weight"], known)[
            :, old
        ]
        _by_frame(letters.bias, alphabet)[:, new] = _by_frame(saved["letters.bias"], known)[:, old]
    if pieces is not None and "pieces.weight" in saved:
        pieces.load_state_dict({key: saved[f"pieces.{key}"] for key in ("weight", "bias")})


class TranscriptCtc:
    """Head of characters that scores a transcript against the features that it came from.

    Args:
        folder: folder of a checkpoint with a head of characters on the Q-Former's output.
    """

    def __init__(self, folder: Path) -> None:
        with safe_open(folder / HEADS_FILE, "pt") as file:
            self._weight = file.get_tensor("letters.weight").float()
            self._bias = file.get_tensor("letters.bias").float()
            alphabet: str = json.loads(file.metadata()["alphabet"])
        self._places = {character: 1 + number for number, character in enumerate(alphabet)}

    def frames(self, features: Tensor) -> Tensor:
        """Log-probabilities (frames, 1 + alphabet) of an utterance's features (tokens, width)."""
        logits = nn.functional.linear(features, self._weight, self._bias)
        return logits.view(-1, 1 + len(self._places)).log_softmax(-1)

    def agreement(self, frames: Tensor, transcript: str) -> float:
        """Log-probability of a transcript, minus that of the best path, for each character.

        Characters outside of the alphabet are left out. An empty transcript has one character.

        Args:
            frames: what `frames` returns.
            transcript: text of an answer.

        Returns:
            At most about 0, in nats; lower for a transcript that the features contradict.
        """
        target = [self._places[one] for one in transcript if one in self._places]
        loss = nn.functional.ctc_loss(
            frames[:, None],
            torch.tensor(target, dtype=torch.long),
            torch.tensor([len(frames)]),
            torch.tensor([len(target)]),
            reduction="sum",
        )
        best = frames.max(-1).values.sum()
        # More characters than frames have no path.
        return float((-loss - best).clamp(min=_LEAST_AGREEMENT)) / max(1, len(target))


def _by_frame(tensor: Tensor, alphabet: str) -> Tensor:
    """View of a head's outputs as frames of a blank and the alphabet."""
    return tensor.view(-1, 1 + len(alphabet), *tensor.shape[1:])
