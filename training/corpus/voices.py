"""Random espeak-ng voices: drawn voice files, and speech with them."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np

from esrt.errors import CheckFailed
from training.corpus.speech import Samples, Utterance, espeak_data, speak_parallel, speak_samples

# The line of a voice file that lengthens syllables by their stress.
_STRESS = "stressAdd "
# The reference voice of parallel speech: the plainest of espeak-ng's voices in the training split.
_REFERENCE_VARIANT = "m3"
# espeak-ng fails if its data folder has more than 349 voices.
_VOICES_PER_FOLDER = 100


def draw_voice(random: Random) -> str:
    """Draw the text of a voice file, within the ranges of espeak-ng's own voice files.

    A long vocal tract loosely correlates with a low pitch, as in people.
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
    if random.random() < 0.3:  # a harsher glottal source (Klatt synthesis)
        lines.append(f"klatt {random.randrange(1, 6)}")
    return "\n".join(lines) + "\n"


def _formant(number: int, frequency: float, random: Random) -> str:
    """Format a formant's frequency, height and width in percent; formant 0 is below the first."""
    percent = frequency * random.uniform(0.95, 1.05) if number else 100
    return f"formant {number} {percent:.0f} {random.randrange(60, 131)} {random.randrange(75, 151)}"


def builtin_voice(variant: str) -> str:
    """Read one of espeak-ng's own voice files.

    Raises:
        SpeechError: espeak-ng is not installed.
    """
    return (espeak_data() / "voices" / "!v" / variant).read_text("ascii")


def reference_voice(voice: str) -> str:
    """Combine the reference voice with the syllable lengths of another voice file."""
    builtin = builtin_voice(_REFERENCE_VARIANT).splitlines()
    builtin = [line for line in builtin if not line.startswith(_STRESS)]
    rhythm = [line for line in voice.splitlines() if line.startswith(_STRESS)]
    return "\n".join([*builtin, *rhythm, ""])


def speak_all(utterances: Sequence[Utterance], voices: Mapping[str, str]) -> list[Samples]:
    """Synthesize utterances with the given voices, on all processors.

    Args:
        utterances: sentences and speakers; each variant is a key of ``voices``.
        voices: texts of voice files by name.

    Raises:
        SpeechError: espeak-ng is not installed, or failed.
        CheckFailed: espeak-ng ignored a voice file.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folders: dict[str, Path] = {}
        names = list(voices)
        for first in range(0, len(names), _VOICES_PER_FOLDER):
            part, folder = names[first : first + _VOICES_PER_FOLDER], Path(temporary, str(first))
            install_voices({name: voices[name] for name in part}, folder)
            folders |= dict.fromkeys(part, folder)
        _check_voices(folders)
        return speak_parallel(
            utterances, "speaking", [folders[utterance.variant] for utterance in utterances]
        )


def install_voices(voices: Mapping[str, str], folder: Path) -> None:
    """Make in ``folder`` a copy of espeak-ng's data folder that has these voices only."""
    copy = folder / "espeak-ng-data"
    variants = copy / "voices" / "!v"
    variants.mkdir(parents=True)
    for entry in espeak_data().iterdir():
        if entry.name != "voices":
            (copy / entry.name).symlink_to(entry)
    for name, text in voices.items():
        (variants / name).write_text(text, "ascii")


def _check_voices(folders: Mapping[str, Path]) -> None:
    # espeak-ng replaces an unknown voice by its default voice, without an error.
    default = speak_samples(_test_utterance("none"))
    utterances = [_test_utterance(name) for name in folders]
    audio = speak_parallel(utterances, "checking voices", folders.values())
    if any(np.array_equal(samples, default) for samples in audio):
        raise CheckFailed(
            "espeak-ng speaks with its default voice instead of a voice file.",
            "Compare the voice files' form with the docs/voices.md of this espeak-ng.",
        )


def _test_utterance(variant: str) -> Utterance:
    return Utterance("eng", "hello", variant, 180, 50)
