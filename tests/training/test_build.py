"""Corpus on disk: utterances, audio, index, and complete writes."""

import json
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from esrt.speech import DEFAULT_SETTINGS, trim_and_level
from training.corpus import build as module
from training.corpus import speech
from training.corpus.build import build, load, utterances
from training.corpus.domain import NANO
from training.corpus.speech import UNSEEN_VARIANTS, VARIANTS, SpeechError, Utterance
from training.corpus.text import Sentence

Splits = dict[str, list[Sentence]]
COUNT = 3


def noise(utterance: Utterance, data: Path | None = None) -> NDArray[np.float32]:
    """Make noise that depends on the text, somewhat beyond full scale."""
    random = np.random.default_rng(list(utterance.text.encode()))
    return random.uniform(-1.1, 1.1, 100 + 10 * len(utterance.text)).astype(np.float32)


@pytest.fixture(autouse=True)
def tiny_splits(monkeypatch: pytest.MonkeyPatch, splits: Splits) -> None:
    """Use three sentences in each split; unseen voices speak one of the test split."""
    monkeypatch.setattr(module, "sentences", lambda name: splits[name][:COUNT])
    monkeypatch.setattr(module, "UNSEEN_SENTENCES", 1)


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace espeak-ng by noise."""
    monkeypatch.setattr(speech, "speak", noise)
    monkeypatch.setattr(module, "espeak_version", lambda: "espeak-ng 0.0")


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_every_sentence_is_spoken_once_in_each_language(splits: Splits, name: str) -> None:
    found = utterances(name)
    assert [sentence for sentence, _ in found] == splits[name][:COUNT]
    for sentence, group in found:
        assert [utterance.language for utterance in group] == list(NANO.languages)
        assert [utterance.text for utterance in group] == list(sentence.texts.values())
    assert utterances(name) == found


def test_unseen_voices_speak_only_the_end_of_the_test_split() -> None:
    for name in ("train", "validation", "test"):
        groups = [{one.variant for one in group} for _, group in utterances(name)]
        unseen = [bool(group & set(UNSEEN_VARIANTS)) for group in groups]
        assert unseen == [False, False, name == "test"]
        assert groups[-1] <= set(UNSEEN_VARIANTS if name == "test" else VARIANTS)


@pytest.mark.usefixtures("spoken")
def test_a_built_split_is_read_back(tmp_path: Path, splits: Splits) -> None:
    build(tmp_path, "test")
    corpus = load(tmp_path, "test")
    spoken = [utterance for _, group in utterances("test") for utterance in group]
    assert len(corpus.examples) == len(spoken) == COUNT * len(NANO.languages)
    assert corpus.audio.dtype == np.int16
    assert len(corpus.audio) == sum(example.samples for example in corpus.examples)
    texts = [sentence for sentence in splits["test"][:COUNT] for _ in NANO.languages]
    for example, utterance, sentence in zip(corpus.examples, spoken, texts, strict=True):
        assert (example.kind, example.texts) == (sentence.kind, sentence.texts)
        assert (example.language, example.variant) == (utterance.language, utterance.variant)
        audio = corpus.speech(example)
        assert audio.dtype == np.float32
        spoken_audio = np.clip(noise(utterance), -1, 1).astype(np.float32)
        expected = trim_and_level(spoken_audio, DEFAULT_SETTINGS)
        np.testing.assert_allclose(audio, expected, atol=1e-3)


@pytest.mark.usefixtures("spoken")
def test_the_manifest_records_sizes_and_versions(tmp_path: Path) -> None:
    build(tmp_path, "validation")
    manifest = json.loads((tmp_path / "validation" / "manifest.json").read_text("utf-8"))
    samples = len(load(tmp_path, "validation").audio)
    assert manifest["hours"] == pytest.approx(samples / 16_000 / 3600, abs=1e-3)
    assert {key: manifest[key] for key in ("sentences", "utterances", "espeak-ng")} == {
        "sentences": COUNT,
        "utterances": COUNT * len(NANO.languages),
        "espeak-ng": "espeak-ng 0.0",
    }
    assert {"seed", "babel"} <= set(manifest)


@pytest.mark.usefixtures("spoken")
def test_a_missing_split_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(tmp_path, "test").examples
    monkeypatch.setattr(module, "build", None)
    assert load(tmp_path, "test").examples == first


@pytest.mark.usefixtures("spoken")
def test_a_failed_build_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(utterance: Utterance, data: Path | None = None) -> NDArray[np.float32]:
        if utterance.language == "cmn":
            raise SpeechError("espeak-ng failed.", "Try again.")
        return noise(utterance)

    with monkeypatch.context() as broken:
        broken.setattr(speech, "speak", fail)
        with pytest.raises(SpeechError):
            build(tmp_path, "test")
        assert not (tmp_path / "test").exists()
    build(tmp_path, "test")
    assert [path.name for path in tmp_path.iterdir()] == ["test"]
    before = (tmp_path / "test" / "index.jsonl").read_bytes()
    monkeypatch.setattr(speech, "speak", fail)
    with pytest.raises(SpeechError):
        build(tmp_path, "test")
    assert (tmp_path / "test" / "index.jsonl").read_bytes() == before


def test_without_espeak_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SpeechError, match="apt-get install espeak-ng"):
        build(tmp_path, "test")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_real_speech_has_a_plausible_length(tmp_path: Path) -> None:
    build(tmp_path, "test")
    corpus = load(tmp_path, "test")
    example = Random(0).choice(corpus.examples)
    assert 0.3 < example.samples / 16_000 < 12
    assert np.abs(corpus.speech(example)).max() > 0.05
