"""Synthetic speakers who speak the same sentences; the audio is cached.

A speaker of espeak-ng is a voice file (pitch, formants, roughness, source) and a speed. Speed and
pitch also vary from utterance to utterance of one speaker, as they do in people.

A speaker of Kokoro is a voice or a blend of two, with a vocal tract. The unseen speakers have the
voices that no training of a model has, the known ones the others.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from benchmarks.privacy.engine import Engine
from esrt.files import replace_folder
from training.corpus import text
from training.corpus.clips import worker_pool
from training.corpus.domain import NANO
from training.corpus.engines.kokoro import UNSEEN, VOICES, Kokoro, blend, change_tract
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
# Factors of pitch and formants of a speaker of Kokoro.
_TRACTS = (0.85, 1.18)
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
    engine: Engine = Engine.ESPEAK

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
class KokoroSpeaker:
    """Name of a voice or blend, and factor of pitch and formants."""

    voice: str
    tract: float


@dataclass(frozen=True)
class Speech:
    """Audio at 16 kHz, speaker and sentence of every utterance."""

    audio: list[Samples]
    speaker: NDArray[np.int64]
    sentence: NDArray[np.int64]


def draw_speaker(random: Random) -> Speaker:
    """Draw a random speaker."""
    return Speaker(draw_voice(random), random.randrange(165, 211))


def draw_kokoro_speakers(speakers: SpeakerSet, voices: Sequence[str]) -> list[KokoroSpeaker]:
    """Draw different speakers: first the voices themselves, then blends of two.

    Args:
        speakers: numbers of known and unseen speakers.
        voices: names of all voices.
    """
    random = Random(speakers.seed)
    drawn = []
    for count, names in (
        (speakers.known, [name for name in voices if name not in UNSEEN]),
        (speakers.unseen, [name for name in voices if name in UNSEEN]),
    ):
        alone = [KokoroSpeaker(name, 1.0) for name in names]
        blends = [_draw_blend(names, random) for _ in range(count - len(alone))]
        drawn += [*alone, *blends][:count]
    return drawn


def _draw_blend(names: list[str], random: Random) -> KokoroSpeaker:
    one, two = random.sample(names, 2)
    return KokoroSpeaker(blend(one, two, random.randrange(30, 71)), random.uniform(*_TRACTS))


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
        EngineError: Kokoro is not installed.
        CheckFailed: espeak-ng rejected the voice files.
    """
    settings = dataclasses.asdict(speakers) | {"version": _VERSION, "espeak": espeak_version()}
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    place = folder / f"speech-{name}"
    if not place.exists():
        speak = _speak_kokoro if speakers.engine is Engine.KOKORO else _speak_espeak
        audio = speak(speakers)
        with replace_folder(place) as partial:
            np.save(partial / "audio.npy", np.concatenate(audio))
            np.save(partial / "ends.npy", np.cumsum([len(samples) for samples in audio]))
    ends = np.load(place / "ends.npy")
    audio = np.split(np.load(place / "audio.npy"), ends[:-1])
    utterances = np.array(speakers.utterances())
    return Speech(audio, utterances[:, 0], utterances[:, 1])


def _speak_espeak(speakers: SpeakerSet) -> list[Samples]:
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
    return speak_all(utterances, voices)


def _speak_kokoro(speakers: SpeakerSet) -> list[Samples]:
    Kokoro()  # fails before the work begins, in this process
    drawn = draw_kokoro_speakers(speakers, sorted(path.stem for path in VOICES.glob("*.bin")))
    sentences = draw_sentences(speakers.sentences, Random(speakers.seed))
    utterances = [
        (drawn[speaker], sentences[sentence]) for speaker, sentence in speakers.utterances()
    ]
    with worker_pool() as pool:
        audio = pool.map(_speak, utterances, chunksize=8)
        return list(track(audio, description="speaking", total=len(utterances)))


def _speak(utterance: tuple[KokoroSpeaker, str]) -> Samples:
    speaker, sentence = utterance
    audio = _kokoro().speak(sentence, "eng", speaker.voice)
    if speaker.tract != 1:
        audio = change_tract(audio, speaker.tract)
    return np.asarray(np.round(32767 * np.clip(audio, -1, 1)), np.int16)


@cache
def _kokoro() -> Kokoro:
    """Open Kokoro once in a process."""
    return Kokoro()


def _variant(speaker: int) -> str:
    return f"speaker{speaker}"
