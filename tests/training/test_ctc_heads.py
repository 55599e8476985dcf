"""Auxiliary CTC heads beside a checkpoint: saved, and copied by character."""

from pathlib import Path

import torch
from torch import nn

from training.ctc_heads import HEADS_FILE, TranscriptCtc, load_heads, save_heads

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


def test_the_transcript_of_the_best_path_agrees_best(tmp_path: Path) -> None:
    """Features are one-hot, and the head names a character for each of two frames of a token."""
    letters = nn.Linear(3, 2 * 4)
    with torch.no_grad():
        letters.bias.zero_()
        letters.weight.zero_()
        for token, characters in enumerate([(1, 0), (2, 0), (3, 3)]):
            for frame, character in enumerate(characters):
                letters.weight[4 * frame + character, token] = 8
    save_heads(tmp_path, letters, None, "abc")
    scorer = TranscriptCtc(tmp_path)
    frames = scorer.frames(torch.eye(3))
    assert frames.shape == (6, 4)
    scores = {text: scorer.agreement(frames, text) for text in ("abc", "abcé", "ab", "cab", "")}
    assert abs(scores["abc"]) < 0.1
    assert scores["abcé"] == scores["abc"]
    assert scores["ab"] < -1 > scores["cab"]
    assert scores[""] < -10
    assert scorer.agreement(frames, "abcabcabc") <= -1000


def test_heads_that_a_run_lacks_stay_as_they_are(tmp_path: Path) -> None:
    letters, pieces = heads("ab")
    before = letters.weight.detach().clone()
    load_heads(tmp_path, letters, pieces, "ab")
    save_heads(tmp_path, None, pieces, "ab")
    load_heads(tmp_path, letters, None, "ab")
    assert torch.equal(letters.weight, before)
    assert [path.name for path in tmp_path.iterdir()] == [HEADS_FILE]
