"""Speech by espeak-ng: repeatable, at 16 kHz, with many speakers."""

import dataclasses
import io
import shutil
import subprocess
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile

from training.corpus.speech import (
    UNSEEN_VARIANTS,
    VARIANTS,
    SpeechError,
    Utterance,
    espeak_version,
    make_utterance,
    speak,
)
from training.corpus.synthesis_languages import SYNTHESIS_LANGUAGES

needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"
)
UTTERANCE = Utterance("eng", "The bus to Zürich leaves in 20 minutes.", "f2", 180, 50)
PLACES = {
    "rus": "Рим, Лима, Берн",
    "hin": "रोम, लीमा, बर्न",
    "ara": "روما، ليما، برن",
    "kor": "로마, 리마, 베른",
    "cmn": "罗马、利马、伯尔尼",
}


@needs_espeak
def test_the_same_utterance_always_sounds_the_same() -> None:
    audio = speak(UTTERANCE)
    assert audio.dtype == np.float32
    assert audio.ndim == 1
    again = speak(UTTERANCE)
    assert again.shape == audio.shape
    # Nearly always the samples are equal; about once in some thousand runs espeak-ng differs
    # slightly.
    assert np.corrcoef(again, audio)[0, 1] > 0.99
    assert 0.05 < np.abs(audio).max() <= 1.05


@needs_espeak
def test_audio_is_at_16_khz() -> None:
    command = ["espeak-ng", "-v", "en-us+f2", "-s", "180", "-p", "50", "--stdout", UTTERANCE.text]
    done = subprocess.run(command, capture_output=True, check=True)
    original, rate = soundfile.read(io.BytesIO(done.stdout))
    assert rate != 16_000
    assert len(speak(UTTERANCE)) / 16_000 == pytest.approx(len(original) / rate, abs=0.001)


@needs_espeak
@pytest.mark.parametrize("change", [{"pitch": 65}, {"variant": "m3"}, {"text": "Good morning."}])
def test_speaker_and_text_change_the_audio(change: dict[str, object]) -> None:
    audio, other = speak(UTTERANCE), speak(dataclasses.replace(UTTERANCE, **change))  # type: ignore[arg-type]
    length = min(len(audio), len(other))
    assert np.abs(audio[:length] - other[:length]).max() > 0.05


@needs_espeak
def test_faster_is_shorter() -> None:
    assert len(speak(dataclasses.replace(UTTERANCE, speed=210))) < 0.95 * len(speak(UTTERANCE))


@needs_espeak
def test_a_text_that_begins_with_a_hyphen_is_spoken() -> None:
    assert len(speak(dataclasses.replace(UTTERANCE, text="- Good morning."))) > 8_000


@needs_espeak
@pytest.mark.parametrize("language", SYNTHESIS_LANGUAGES)
def test_every_language_is_spoken(language: str) -> None:
    text = PLACES.get(language, "Roma, Lima, Berna")
    audio = speak(Utterance(language, text, "f1", 190, 50))
    assert 0.5 < len(audio) / 16_000 < 5


@needs_espeak
def test_every_speaker_sounds_different() -> None:
    sounds = {
        speak(dataclasses.replace(UTTERANCE, text="Good morning.", variant=variant)).tobytes()
        for variant in (*VARIANTS, *UNSEEN_VARIANTS)
    }
    assert len(sounds) == len(VARIANTS) + len(UNSEEN_VARIANTS)


@needs_espeak
def test_the_version_is_one_line() -> None:
    assert "1." in espeak_version() and "\n" not in espeak_version()


def test_a_failure_of_espeak_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tmp_path / "espeak-ng"
    failing.write_text("#!/bin/sh\necho 'Error: no voice.' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpeechError, match=r"espeak-ng failed: Error: no voice\..+--voices"):
        speak(UTTERANCE)


def test_unseen_speakers_are_not_in_training() -> None:
    assert not set(VARIANTS) & set(UNSEEN_VARIANTS)


def test_random_speakers_follow_the_seed() -> None:
    def speakers(seed: int) -> list[Utterance]:
        random = Random(seed)
        return [make_utterance("deu", "Hallo", random) for number in range(50)]

    assert speakers(0) == speakers(0) != speakers(1)
    assert len({(u.variant, u.speed, u.pitch) for u in speakers(0)}) > 40
    assert {u.variant for u in speakers(0)} == set(VARIANTS)


def test_random_speakers_have_the_given_variants() -> None:
    random = Random(0)
    found = {
        make_utterance("deu", "Hallo", random, UNSEEN_VARIANTS).variant for number in range(50)
    }
    assert found == set(UNSEEN_VARIANTS)


def test_the_error_without_espeak_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SpeechError, match="apt-get install espeak-ng") as caught:
        speak(UTTERANCE)
    assert caught.value.exit_code == 2
