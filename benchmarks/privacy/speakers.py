"""Synthetic speakers by espeak-ng who speak the same sentences; the audio is cached.

A speaker is a voice file (pitch, formants, roughness, source) and a speed. Speed and pitch also
vary from utterance to utterance of one speaker, as they do in people.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from esrt.files import replace_folder
from training.corpus import text
from training.corpus.domain import NANO
from training.corpus.speech import Samples, Utterance, espeak_version
from training.corpus.voices import draw_voice, speak_all

# Letters in a sentence: enough speech to recognize the speaker from log-mel.
_LETTERS = range(30, 71)
# Standard deviations within one speaker: of speed as a share, and of pitch in steps of espeak-ng,
# which are 1.4 % each.
_SPEED_SPREAD = 0.05
_PITCH_SPREAD = 3.0
# espeak-ng's default pitch, which leaves the pitch of the voice file unchanged.
_PITCH = 50
# Part of the cache's name. Raise it when the same settings give other speech.
_VERSION = 1


@dataclass(frozen=True)
class SpeakerSet:
    """Numbers of speakers and sentences, and the seed that they are drawn from.

    The first ``known`` speakers say all sentences, and attackers train on their first ``training``
    sentences. The other ``unseen`` speakers say only the last ``test`` sentences.
    """

    known: int
    unseen: int
    training: int
    test: int
    seed: int = 5

    @property
    def speakers(self) -> int:
        """Number of speakers."""
        return self.known + self.unseen

    @property
    def sentences(self) -> int:
        """Number of sentences."""
        return self.training + self.test

    def utterances(self) -> list[tuple[int, int]]:
        """Speaker and sentence of every utterance, in the order of the audio."""
        return [
            (speaker, sentence)
            for speaker, sentence in product(range(self.speakers), range(self.sentences))
            if speaker < self.known or sentence >= self.training
        ]


@dataclass(frozen=True)
class Speaker:
    """Text of a voice file, and words per minute."""

    voice: str
    speed: int


@dataclass(frozen=True)
class Speech:
    """Audio at 16 kHz, speaker and sentence of every utterance."""

    audio: list[Samples]
    speaker: NDArray[np.int64]
    sentence: NDArray[np.int64]


def draw_speaker(random: Random) -> Speaker:
    """Draw a random speaker."""
    return Speaker(draw_voice(random), random.randrange(165, 211))


def draw_sentences(count: int, random: Random) -> list[str]:
    """Draw different English sentences from the phrases of the corpus."""
    drawn: dict[str, None] = {}
    for sentence in text.sentences(NANO, random):
        words = sentence.texts["eng"]
        if sentence.kind == "phrase" and len(words) in _LETTERS:
            drawn[words] = None
        if len(drawn) == count:
            break
    return list(drawn)


def speech(speakers: SpeakerSet, folder: Path) -> Speech:
    """Read the speech of all speakers from the cache, or synthesize it first.

    Raises:
        SpeechError: espeak-ng is not installed.
        CheckFailed: espeak-ng rejected the voice files.
    """
    settings = dataclasses.asdict(speakers) | {"version": _VERSION, "espeak": espeak_version()}
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    place = folder / f"speech-{name}"
    if not place.exists():
        _build(speakers, place)
    ends = np.load(place / "ends.npy")
    audio = np.split(np.load(place / "audio.npy"), ends[:-1])
    utterances = np.array(speakers.utterances())
    return Speech(audio, utterances[:, 0], utterances[:, 1])


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
        for speaker, sentence in speakers.utterances()
    ]
    voices = {_variant(number): speaker.voice for number, speaker in enumerate(drawn)}
    audio = speak_all(utterances, voices)
    with replace_folder(place) as folder:
        np.save(folder / "audio.npy", np.concatenate(audio))
        np.save(folder / "ends.npy", np.cumsum([len(samples) for samples in audio]))


def _variant(speaker: int) -> str:
    return f"speaker{speaker}"
