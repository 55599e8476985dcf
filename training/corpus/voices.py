"""Voices of espeak-ng's that it does not come with: drawn at random, installed for a while."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
from rich.progress import track

from esrt.errors import CheckFailed
from training.corpus.speech import Samples, Utterance, espeak_data, speak, stored

# The line of a voice file that says how much longer syllables are, by their stress.
_STRESS = "stressAdd "
# espeak-ng refuses to speak where it finds more than 349 voices.
_VOICES_AT_ONCE = 100


def draw_voice(random: Random) -> str:
    """A voice file's text, at random within what the voices that espeak-ng comes with have.

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
        _STRESS + " ".join(str(random.randrange(-20, 31)) for _ in range(8)),
        "tone 100 255 600 {} 1200 {} 2000 {} 3000 {}".format(
            *(random.randrange(lowest, lowest + 90) for lowest in (80, 40, 50, 10))
        ),
    ]
    if random.random() < 0.3:  # another source of voice, harsher
        lines.append(f"klatt {random.randrange(1, 6)}")
    return "\n".join(lines) + "\n"


def _formant(number: int, frequency: float, random: Random) -> str:
    """A line of a voice file: frequency, height and width in percent; 0 is below the first."""
    percent = frequency * random.uniform(0.95, 1.05) if number else 100
    return f"formant {number} {percent:.0f} {random.randrange(60, 131)} {random.randrange(75, 151)}"


def own_voice(variant: str) -> str:
    """The text of a voice file that espeak-ng comes with.

    Raises:
        SpeechError: espeak-ng is not installed.
    """
    return (espeak_data() / "voices" / "!v" / variant).read_text("ascii")


def with_rhythm_of(voice: str, variant: str) -> str:
    """A voice that espeak-ng comes with, lengthening syllables as another voice does."""
    own = [line for line in own_voice(variant).splitlines() if not line.startswith(_STRESS)]
    rhythm = [line for line in voice.splitlines() if line.startswith(_STRESS)]
    return "\n".join([*own, *rhythm, ""])


def speak_all(utterances: Sequence[Utterance], voices: Mapping[str, str]) -> list[Samples]:
    """What the utterances sound like, at 16 kHz, by all processors.

    Args:
        utterances: their variants are among the voices.
        voices: the voice files' texts by name.

    Raises:
        SpeechError: espeak-ng is not installed.
        CheckFailed: espeak-ng did not take a voice file.
    """
    with tempfile.TemporaryDirectory() as temporary, ProcessPoolExecutor(os.cpu_count()) as pool:
        places: dict[str, Path] = {}
        names = list(voices)
        for first in range(0, len(names), _VOICES_AT_ONCE):
            part, place = names[first : first + _VOICES_AT_ONCE], Path(temporary, str(first))
            _install({name: voices[name] for name in part}, place)
            places |= dict.fromkeys(part, place)
        _check(list(pool.map(_samples, map(_hello, names), places.values())))
        where = [places[utterance.variant] for utterance in utterances]
        spoken = pool.map(_samples, utterances, where, chunksize=32)
        return list(track(spoken, description="speaking", total=len(utterances)))


def _install(voices: Mapping[str, str], folder: Path) -> None:
    """Make a folder that espeak-ng takes as its data: its own, with these voices alone."""
    copy = folder / "espeak-ng-data"
    variants = copy / "voices" / "!v"
    variants.mkdir(parents=True)
    for entry in espeak_data().iterdir():
        if entry.name != "voices":
            (copy / entry.name).symlink_to(entry)
    for name, text in voices.items():
        (variants / name).write_text(text, "ascii")


def _hello(variant: str) -> Utterance:
    return Utterance("eng", "hello", variant, 180, 50)


def _check(audio: Sequence[Samples]) -> None:
    # espeak-ng takes a voice that it does not know, without a word, as its default voice.
    plain = stored(speak(_hello("none")))
    if any(np.array_equal(one, plain) for one in audio):
        raise CheckFailed(
            "espeak-ng speaks with its default voice instead of a voice file.",
            "Compare the voice files' form with the docs/voices.md of this espeak-ng.",
        )


def _samples(utterance: Utterance, data: Path) -> Samples:
    """The utterance by the voices of a folder; in a process that speaks one at a time."""
    os.environ["ESPEAK_DATA_PATH"] = str(data)
    return stored(speak(utterance))
