"""Human recordings: a folder with a folder for each language.

A language's folder has clips and ``transcripts.tsv``: file name, tab, text. The folder of Debian's
``festvox-ru`` is read as it is: ``wav/`` and ``etc/txt.done.data``.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from random import Random

import soundfile
import soxr

from esrt.arrays import Float32Array
from esrt.features import SAMPLE_RATE
from training.corpus.engines import EngineError

TEST, VALIDATION = 100, 20
_TRANSCRIPTS, _FESTVOX = "transcripts.tsv", "etc/txt.done.data"
_FESTVOX_LINE = re.compile(r'\(\s*(\S+)\s+"(.*)"\s*\)')


class Human:
    """Recordings; the voice of an utterance is the name of its file.

    Raises:
        EngineError: the folder is missing.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise EngineError(
                f"The folder of human recordings, {folder}, is missing.",
                "Set recordings in the corpus's settings, or leave the engine human out.",
            )
        self._folder = folder

    def languages(self) -> list[str]:
        """Languages with recordings."""
        return sorted(path.name for path in self._folder.iterdir() if self.transcripts(path.name))

    def transcripts(self, language: str) -> dict[str, str]:
        """Text of each clip."""
        folder = self._folder / language
        if (folder / _TRANSCRIPTS).is_file():
            lines = (folder / _TRANSCRIPTS).read_text("utf-8").splitlines()
            return {
                name: text.strip() for name, _, text in (line.partition("\t") for line in lines)
            }
        if (folder / _FESTVOX).is_file():
            found = _FESTVOX_LINE.findall((folder / _FESTVOX).read_text("utf-8"))
            # A plus sign stands before a stressed vowel.
            return {f"wav/{name}.wav": text.replace("+", "") for name, text in found}
        return {}

    def voices(self, language: str, split: str) -> Sequence[str]:
        """Clips of a language: 100 are for the test, 20 for validation."""
        names = sorted(self.transcripts(language))
        Random(0).shuffle(names)
        places = {
            "test": (0, TEST),
            "validation": (TEST, TEST + VALIDATION),
            "train": (TEST + VALIDATION, None),
        }
        return names[slice(*places[split])]

    def speak(self, text: str, language: str, voice: str) -> Float32Array:
        """Read a clip."""
        audio, rate = soundfile.read(self._folder / language / voice, dtype="float32")
        if audio.ndim > 1:
            audio = audio.mean(axis=1)
        spoken: Float32Array = soxr.resample(audio, rate, SAMPLE_RATE)
        return spoken
