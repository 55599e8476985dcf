"""Synthetic speakers by espeak-ng, and what they say: the same sentences, cached audio.

A speaker is a voice file of its own (pitch, formants, roughness, source) and a speed. Nobody
speaks twice alike, so speed and pitch vary from utterance to utterance within a speaker too.
"""

import dataclasses
import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from training.corpus import text
from training.corpus.speech import Samples, Utterance, espeak_version
from training.corpus.voices import draw_voice, speak_all

# The sentences: long enough that log-mel tells the speaker, as English letters.
_LETTERS = range(30, 71)
# How much one speaker varies: the standard deviations of speed (a share) and of pitch, in steps
# of espeak-ng's pitch, which are 1.4 % each.
_SPEED_SPREAD = 0.05
_PITCH_SPREAD = 3.0
# espeak-ng's default pitch, at which a voice file's own pitch is heard.
_PITCH = 50
# Part of the cache's name: to be raised when the same settings give other speech.
_VERSION = 1


@dataclass(frozen=True)
class SpeakerSet:
    """Who says what, from one seed.

    The first ``known`` speakers say every sentence; attackers train on what they say of the first
    ``training`` sentences. The ``unseen`` others say only the last ``test`` sentences.
    """

    known: int
    unseen: int
    training: int
    test: int
    seed: int = 5

    @property
    def speakers(self) -> int:
        """All speakers."""
        return self.known + self.unseen

    @property
    def sentences(self) -> int:
        """All sentences."""
        return self.training + self.test

    def said(self) -> list[tuple[int, int]]:
        """(speaker, sentence) of every utterance, in the order of the audio."""
        return [
            (speaker, sentence)
            for speaker, sentence in product(range(self.speakers), range(self.sentences))
            if speaker < self.known or sentence >= self.training
        ]


@dataclass(frozen=True)
class Speaker:
    """A voice file's text, and words a minute."""

    voice: str
    speed: int


@dataclass(frozen=True)
class Speech:
    """Every utterance: the audio (16 kHz) and the row of its speaker and its sentence."""

    audio: list[Samples]
    speaker: NDArray[np.int64]
    sentence: NDArray[np.int64]


def draw_speaker(random: Random) -> Speaker:
    """A speaker at random."""
    return Speaker(draw_voice(random), random.randrange(165, 211))


def draw_sentences(count: int, random: Random) -> list[str]:
    """That many different English sentences of the corpus's phrases."""
    found: dict[str, None] = {}
    for sentence in text.sentences(random):
        words = sentence.texts["eng"]
        if sentence.kind == "phrase" and len(words) in _LETTERS:
            found[words] = None
        if len(found) == count:
            break
    return list(found)


def speech(speakers: SpeakerSet, folder: Path) -> Speech:
    """What a cast says; spoken where that has not been done, else read from the folder.

    Raises:
        SpeechError: espeak-ng is not installed.
        CheckFailed: espeak-ng did not take the speakers' voice files.
    """
    settings = dataclasses.asdict(speakers) | {"version": _VERSION, "espeak": espeak_version()}
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    place = folder / f"speech-{name}"
    if not place.exists():
        _build(speakers, place)
    ends = np.load(place / "ends.npy")
    audio = np.split(np.load(place / "audio.npy"), ends[:-1])
    said = np.array(speakers.said())
    return Speech(audio, said[:, 0], said[:, 1])


def _build(speakers: SpeakerSet, place: Path) -> None:
    random = Random(speakers.seed)
    drawn = [draw_speaker(random) for _ in range(speakers.speakers)]
    sentences = draw_sentences(speakers.sentences, random)
    utterances = [
        Utterance(
            "eng",
            sentences[sentence],
            _variant(speaker),
            round(drawn[speaker].speed * math.exp(random.gauss(0, _SPEED_SPREAD))),
            round(random.gauss(_PITCH, _PITCH_SPREAD)),
        )
        for speaker, sentence in speakers.said()
    ]
    voices = {_variant(number): speaker.voice for number, speaker in enumerate(drawn)}
    audio = speak_all(utterances, voices)
    temporary = place.with_name(f"{place.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    np.save(temporary / "audio.npy", np.concatenate(audio))
    np.save(temporary / "ends.npy", np.cumsum([len(one) for one in audio]))
    temporary.rename(place)


def _variant(speaker: int) -> str:
    return f"speaker{speaker}"
