"""Parallel speech: random voices, and the reference voice with the same length and rhythm."""

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
        patch.setattr(voices, "_VOICES_PER_FOLDER", 5)
        folder = tmp_path_factory.mktemp("corpus")
        module.build_pairs(folder, VOICES, SENTENCES)
        return module.load_pairs(folder)


def _timbre(audio: np.ndarray) -> np.ndarray:
    """Compute the log spectrum of an utterance in 20 bands."""
    power = np.abs(np.fft.rfft(audio)) ** 2
    bands = np.array_split(power[: len(power) * 5 // 8], 20)
    return np.log([band.mean() + 1e-9 for band in bands])


@needs_espeak
def test_every_sentence_is_spoken_in_every_language(paired: Corpus) -> None:
    assert len(paired.examples) == SENTENCES * len(paired.examples[0].texts)
    variants = {example.variant for example in paired.examples}
    assert variants & {f"voice{number}" for number in range(VOICES)}
    assert not any(variant.endswith("reference") for variant in variants)


@needs_espeak
def test_parallel_speech_is_as_long_and_sounds_different(paired: Corpus) -> None:
    drawn = [example for example in paired.examples if example.variant.startswith("voice")]
    assert len(drawn) > len(paired.examples) / 2
    for example in drawn:
        own, parallel = paired.speech(example), paired.parallel_speech(example)
        assert own.shape == parallel.shape
        assert example.samples / 2 < len(own) <= example.samples
        assert np.abs(parallel).max() > 0.05
        assert np.abs(own - parallel).max() > 0.05


@needs_espeak
def test_parallel_speech_has_one_voice(paired: Corpus) -> None:
    own, parallel = (
        np.stack([_timbre(audio_of(example)) for example in paired.examples])
        for audio_of in (paired.speech, paired.parallel_speech)
    )
    assert parallel.std(axis=0).mean() < 0.8 * own.std(axis=0).mean()


@needs_espeak
def test_the_reference_voice_takes_over_the_rhythm() -> None:
    voice = voices.draw_voice(Random(1))
    reference = voices.reference_voice(voice)
    rhythm = [line for line in voice.splitlines() if line.startswith("stressAdd")]
    assert [line for line in reference.splitlines() if line.startswith("stressAdd")] == rhythm
    assert "pitch 80 122" in reference


@needs_espeak
def test_a_voice_file_that_espeak_ignores_is_an_error() -> None:
    # An empty voice file leaves the default voice.
    with pytest.raises(CheckFailed, match="default voice instead of a voice file"):
        voices.speak_all([Utterance("eng", "hello", "odd", 180, 50)], {"odd": "language variant\n"})
