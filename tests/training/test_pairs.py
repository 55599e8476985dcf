"""Speech by drawn voices, and the same by one voice: as long, and alike in voice."""

import shutil
from random import Random

import numpy as np
import pytest

from esrt.errors import CheckFailed
from training.corpus import pairs as module
from training.corpus import voices
from training.corpus.build import Corpus
from training.corpus.speech import Utterance
from training.corpus.text import Sentence

needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"
)
VOICES, SENTENCES = 6, 4


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory, splits: dict[str, list[Sentence]]) -> Corpus:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sentences", lambda name: splits[name])
        # Several folders of voices, as 800 voices need.
        patch.setattr(voices, "_VOICES_AT_ONCE", 5)
        folder = tmp_path_factory.mktemp("corpus")
        module.build_pairs(folder, VOICES, SENTENCES)
        return module.load_pairs(folder)


def _timbre(audio: np.ndarray) -> np.ndarray:
    """The logarithm of an utterance's spectrum, in 20 bands."""
    power = np.abs(np.fft.rfft(audio)) ** 2
    bands = np.array_split(power[: len(power) * 5 // 8], 20)
    return np.log([band.mean() + 1e-9 for band in bands])


@needs_espeak
def test_every_sentence_is_said_in_every_language(paired: Corpus) -> None:
    assert len(paired.examples) == SENTENCES * len(paired.examples[0].texts)
    said = {example.variant for example in paired.examples}
    assert said & {f"voice{number}" for number in range(VOICES)}
    assert not any(variant.endswith("twin") for variant in said)


@needs_espeak
def test_a_twin_is_as_long_and_another_sound(paired: Corpus) -> None:
    drawn = [example for example in paired.examples if example.variant.startswith("voice")]
    assert len(drawn) > len(paired.examples) / 2
    for example in drawn:
        own, twin = paired.speech(example), paired.twin(example)
        assert own.shape == twin.shape == (example.samples,)
        assert np.abs(twin).max() > 0.05
        assert np.abs(own - twin).max() > 0.05


@needs_espeak
def test_twins_are_of_one_voice(paired: Corpus) -> None:
    own, parallel_audio = (
        np.stack([_timbre(hear(example)) for example in paired.examples])
        for hear in (paired.speech, paired.twin)
    )
    assert parallel_audio.std(axis=0).mean() < 0.8 * own.std(axis=0).mean()


@needs_espeak
def test_a_twin_keeps_the_rhythm() -> None:
    voice = voices.draw_voice(Random(1))
    twin = voices.with_rhythm_of(voice, "m3")
    rhythm = [line for line in voice.splitlines() if line.startswith("stressAdd")]
    assert [line for line in twin.splitlines() if line.startswith("stressAdd")] == rhythm
    assert "pitch 80 122" in twin


@needs_espeak
def test_a_voice_that_espeak_does_not_take_is_noticed() -> None:
    # Two lines that espeak-ng does not know, so that what is left is its default voice.
    with pytest.raises(CheckFailed, match="default voice instead of a voice file"):
        voices.speak_all([Utterance("eng", "hello", "odd", 180, 50)], {"odd": "language variant\n"})
