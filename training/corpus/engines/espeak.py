"""espeak-ng in its own voices and in drawn ones."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

from esrt.arrays import Float32Array
from training.corpus.engines import pace, split_of_number
from training.corpus.speech import UNSEEN_VARIANTS, Utterance, espeak_data, speak, stretch
from training.corpus.synthesis_languages import SYNTHESIS_LANGUAGES
from training.corpus.voices import builtin_voice, draw_voice, install_voices, reference_voice

DRAWN_VOICES = 1000
_SLOWEST, _FASTEST = 140, 215  # words a minute
_DRAWN = "drawn"
# Effects, not people.
_EFFECTS = (
    "Demonic UniRobot anikaRobot croak fast whisper whisperf robosoft robosoft2 robosoft3 "
    "robosoft4 robosoft5 robosoft6 robosoft7 robosoft8 Tweaky Storm"
).split()
# Variants that esrt-nano's test holds out, and some of the other voices.
_UNSEEN_OWN = frozenset((*UNSEEN_VARIANTS, "Alicia", "Denis", "belinda", "edward", "grandpa"))


class Espeak:
    """espeak-ng; a drawn voice is installed when it first speaks.

    Raises:
        SpeechError: espeak-ng is not installed.
    """

    def __init__(self) -> None:
        names = (path.name for path in (espeak_data() / "voices" / "!v").iterdir())
        self._own = sorted(name for name in names if name not in _EFFECTS and " " not in name)
        self._temporary = tempfile.TemporaryDirectory()

    def voices(self, language: str, split: str) -> Sequence[str]:
        """Own voices and drawn ones; validation has drawn ones only."""
        if language not in SYNTHESIS_LANGUAGES:
            return ()
        voices = [*self._own, *(f"{_DRAWN}{number}" for number in range(DRAWN_VOICES))]
        return [voice for voice in voices if _split(voice) == split]

    def speak(self, text: str, language: str, voice: str) -> Float32Array:
        """Speak a text."""
        speed = round(pace(text, voice, _SLOWEST, _FASTEST))
        data = self._data(voice, _voice_file(voice)) if voice.startswith(_DRAWN) else None
        return speak(Utterance(language, text, voice, speed, 50), data)

    def speak_pair(self, text: str, language: str, voice: str) -> tuple[Float32Array, Float32Array]:
        """Speak a text with a voice, and with the reference voice in the rhythm of that voice."""
        own = self.speak(text, language, voice)
        speed = round(pace(text, voice, _SLOWEST, _FASTEST))
        name = f"{voice}-reference"
        data = self._data(name, reference_voice(_voice_file(voice)))
        reference = speak(Utterance(language, text, name, speed, 50), data)
        return own, stretch(reference, len(own))

    def _data(self, voice: str, file: str) -> Path:
        """Folder of espeak-ng's data with one voice file."""
        folder = Path(self._temporary.name, voice)
        if not folder.exists():
            install_voices({voice: file}, folder)
        return folder


def _voice_file(voice: str) -> str:
    return draw_voice(Random(voice)) if voice.startswith(_DRAWN) else builtin_voice(voice)


def _split(voice: str) -> str:
    if voice.startswith(_DRAWN):
        return split_of_number(int(voice.removeprefix(_DRAWN)), DRAWN_VOICES)
    return "test" if voice in _UNSEEN_OWN else "train"
