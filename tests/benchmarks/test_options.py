"""Options shared by all benchmarks, and speech of a given length."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.encode.measures import SMALL
from benchmarks.options import in_existing_folder
from benchmarks.speech import join_clips, log_mel_speech, read_clips
from esrt.errors import EsrtError


def test_a_missing_folder_is_an_error_before_the_measurement(tmp_path: Path) -> None:
    assert in_existing_folder(tmp_path / "figures.json") == tmp_path / "figures.json"
    with pytest.raises(EsrtError, match="does not exist"):
        in_existing_folder(tmp_path / "missing" / "figures.json")


@pytest.mark.parametrize("bins", [80, 128])
def test_speech_has_the_mel_bins_and_the_length_of_the_model(bins: int) -> None:
    config = replace(SMALL, encoder=replace(SMALL.encoder, mel_bins=bins))
    assert log_mel_speech(config, 3).shape == (
        bins,
        300 // config.frame_multiple * config.frame_multiple,
    )


def test_joined_clips_begin_with_the_given_one() -> None:
    clips = read_clips()
    joined = join_clips(clips, 30, first=2)
    assert len(joined) == 30 * 16_000
    assert (joined[: len(clips[2])] == clips[2]).all()
