"""Synthetic speakers by espeak-ng, and what they say: the same sentences, cached audio.

A speaker is a voice file of its own (pitch, formants, roughness, source) and a speed. Nobody
speaks twice alike, so speed and pitch vary from utterance to utterance within a speaker too.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from esrt.errors import CheckFailed
from training.corpus import text
from training.corpus.speech import Utterance, espeak_data, espeak_version, speak

Audio = NDArray[np.int16]

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
class Cast:
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

    audio: list[Audio]
    speaker: NDArray[np.int64]
    sentence: NDArray[np.int64]


def draw_speaker(random: Random) -> Speaker:
    """A speaker at random, within what the voices that espeak-ng comes with have.

    A long vocal tract goes with a low pitch, loosely, as in people.
    """
    tract = random.random()
    base = 75 * (230 / 75) ** (0.6 * tract + 0.4 * random.random())
    lines = [
        "language variant",
        f"pitch {round(base)} {round(base * random.uniform(1.2, 1.7))}",
        *(_formant(number, 84 + 36 * tract, random) for number in range(9)),
        f"roughness {random.randrange(0, 7)}",
        f"flutter {random.randrange(0, 11)}",
        f"voicing {random.randrange(70, 131)}",
        f"consonants {random.randrange(60, 131)} {random.randrange(80, 121)}",
        "stressAdd " + " ".join(str(random.randrange(-20, 31)) for _ in range(8)),
        "tone 100 255 600 {} 1200 {} 2000 {} 3000 {}".format(
            *(random.randrange(lowest, lowest + 90) for lowest in (80, 40, 50, 10))
        ),
    ]
    if random.random() < 0.3:  # another source of voice, harsher
        lines.append(f"klatt {random.randrange(1, 6)}")
    return Speaker("\n".join(lines) + "\n", random.randrange(165, 211))


def _formant(number: int, frequency: float, random: Random) -> str:
    """A line of a voice file: frequency, height and width in percent; 0 is below the first."""
    percent = frequency * random.uniform(0.95, 1.05) if number else 100
    return f"formant {number} {percent:.0f} {random.randrange(60, 131)} {random.randrange(75, 151)}"


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


def speech(cast: Cast, folder: Path) -> Speech:
    """What a cast says; spoken where that has not been done, else read from the folder.

    Raises:
        SpeechError: espeak-ng is not installed.
        CheckFailed: espeak-ng did not take the speakers' voice files.
    """
    settings = dataclasses.asdict(cast) | {"version": _VERSION, "espeak": espeak_version()}
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    place = folder / f"speech-{name}"
    if not place.exists():
        _build(cast, place)
    ends = np.load(place / "ends.npy")
    audio = np.split(np.load(place / "audio.npy"), ends[:-1])
    said = np.array(cast.said())
    return Speech(audio, said[:, 0], said[:, 1])


def _build(cast: Cast, place: Path) -> None:
    random = Random(cast.seed)
    speakers = [draw_speaker(random) for _ in range(cast.speakers)]
    sentences = draw_sentences(cast.sentences, random)
    temporary = place.with_name(f"{place.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    voices = temporary / "voices"
    _install(speakers, voices)
    utterances = [
        Utterance(
            "eng",
            sentences[sentence],
            _variant(speaker),
            round(speakers[speaker].speed * math.exp(random.gauss(0, _SPEED_SPREAD))),
            round(random.gauss(_PITCH, _PITCH_SPREAD)),
        )
        for speaker, sentence in cast.said()
    ]
    with ProcessPoolExecutor(os.cpu_count(), initializer=_use, initargs=(voices,)) as pool:
        audio = list(
            track(
                pool.map(_samples, utterances, chunksize=32),
                description="speaking",
                total=len(utterances),
            )
        )
        _check_voices(list(pool.map(_samples, _alike(sentences[0], cast.speakers))))
    shutil.rmtree(voices)
    np.save(temporary / "audio.npy", np.concatenate(audio))
    np.save(temporary / "ends.npy", np.cumsum([len(one) for one in audio]))
    temporary.rename(place)


def _install(speakers: list[Speaker], folder: Path) -> None:
    """Make a folder that espeak-ng takes as its data: its own, with the speakers' voice files."""
    own, copy = espeak_data(), folder / "espeak-ng-data"
    variants = copy / "voices" / "!v"
    variants.mkdir(parents=True)
    for entry in own.iterdir():
        if entry.name != "voices":
            (copy / entry.name).symlink_to(entry)
    for number, speaker in enumerate(speakers):
        (variants / _variant(number)).write_text(speaker.voice, "ascii")


def _variant(speaker: int) -> str:
    return f"speaker{speaker}"


def _alike(sentence: str, speakers: int) -> list[Utterance]:
    return [Utterance("eng", sentence, _variant(number), 180, _PITCH) for number in range(speakers)]


def _check_voices(audio: list[Audio]) -> None:
    # espeak-ng takes a voice that it does not know, without a word, as its default voice.
    if len({one.tobytes() for one in audio}) < len(audio):
        raise CheckFailed(
            "espeak-ng speaks alike with different voice files.",
            "Compare the voice files' form with the docs/voices.md of this espeak-ng.",
        )


def _use(voices: Path) -> None:
    os.environ["ESPEAK_DATA_PATH"] = str(voices.resolve())


def _samples(utterance: Utterance) -> Audio:
    return np.round(np.clip(speak(utterance), -1, 1) * 32767).astype(np.int16)
