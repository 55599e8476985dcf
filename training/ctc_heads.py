"""Auxiliary CTC heads of a run, kept beside its checkpoint for runs that continue it."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from esrt.files import replace_file

HEADS_FILE = "ctc_heads.safetensors"


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


def _by_frame(tensor: Tensor, alphabet: str) -> Tensor:
    """View of a head's outputs as frames of a blank and the alphabet."""
    return tensor.view(-1, 1 + len(alphabet), *tensor.shape[1:])
