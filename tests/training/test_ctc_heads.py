"""Auxiliary CTC heads beside a checkpoint: saved, and copied by character."""

from pathlib import Path

import torch
from torch import nn

from training.ctc_heads import HEADS_FILE, load_heads, save_heads

WIDTH, FRAMES = 8, 3


def heads(alphabet: str) -> tuple[nn.Linear, nn.Linear]:
    return nn.Linear(WIDTH, FRAMES * (1 + len(alphabet))), nn.Linear(WIDTH, 20)


def test_characters_keep_their_weights_in_another_alphabet(tmp_path: Path) -> None:
    letters, pieces = heads("abc")
    save_heads(tmp_path, letters, pieces, "abc")
    new_letters, new_pieces = heads("cxb")
    before = new_letters.weight.detach().clone().view(FRAMES, 4, WIDTH)
    load_heads(tmp_path, new_letters, new_pieces, "cxb")
    old, new = (one.weight.view(FRAMES, 4, WIDTH) for one in (letters, new_letters))
    for place, source in ((0, 0), (1, 3), (3, 2)):
        assert torch.equal(new[:, place], old[:, source].half().float())
    assert torch.equal(new[:, 2], before[:, 2])
    assert torch.equal(new_letters.bias.view(3, 4)[:, 1], letters.bias.view(3, 4)[:, 3].half())
    assert torch.equal(new_pieces.weight, pieces.weight.half().float())


def test_heads_that_a_run_lacks_stay_as_they_are(tmp_path: Path) -> None:
    letters, pieces = heads("ab")
    before = letters.weight.detach().clone()
    load_heads(tmp_path, letters, pieces, "ab")
    save_heads(tmp_path, None, pieces, "ab")
    load_heads(tmp_path, letters, None, "ab")
    assert torch.equal(letters.weight, before)
    assert [path.name for path in tmp_path.iterdir()] == [HEADS_FILE]
