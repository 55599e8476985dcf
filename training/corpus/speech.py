"""Speech for the sentences, by espeak-ng: who says it, how fast and how high, and the audio."""

import io
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from esrt.errors import EsrtError
from esrt.features import SAMPLE_RATE
from training.corpus.synthesis_languages import SYNTHESIS_LANGUAGES

# Audio as a corpus keeps it.
Samples = NDArray[np.int16]

# espeak-ng's voice variants; the unseen ones speak in the test split alone.
VARIANTS = ("m1", "m3", "m4", "m6", "m7", "f1", "f2", "f4")
UNSEEN_VARIANTS = ("m2", "m5", "f3")


class SpeechError(EsrtError):
    """espeak-ng is missing or failed."""


@dataclass(frozen=True)
class Utterance:
    """One sentence said once. Speed in words a minute, pitch from 0 to 99."""

    language: str
    text: str
    variant: str
    speed: int
    pitch: int


def make_utterance(
    language: str, text: str, random: Random, variants: Sequence[str] = VARIANTS
) -> Utterance:
    """An utterance with a random speaker."""
    return Utterance(
        language,
        text,
        random.choice(variants),
        random.randrange(170, 211),
        random.randrange(35, 66),
    )


def speak(utterance: Utterance) -> NDArray[np.float32]:
    """The utterance's audio, mono at 16 kHz; the same utterance always sounds the same.

    Raises:
        SpeechError: espeak-ng is not installed or refused.
    """
    voice = f"{SYNTHESIS_LANGUAGES[utterance.language].voice}+{utterance.variant}"
    arguments = ["-v", voice, "-s", str(utterance.speed), "-p", str(utterance.pitch), "--stdout"]
    wave = _espeak(*arguments, utterance.text)
    audio, rate = soundfile.read(io.BytesIO(wave), dtype="float32")
    resampled: NDArray[np.float32] = soxr.resample(audio, rate, SAMPLE_RATE)
    return resampled


def stored(audio: NDArray[np.float32]) -> Samples:
    """Audio in [-1, 1] as a corpus keeps it; clipped."""
    return np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)


def espeak_version() -> str:
    """The version that speaks, as it names itself.

    Raises:
        SpeechError: espeak-ng is not installed.
    """
    return _espeak("--version").decode().split("Data at")[0].strip()


def espeak_data() -> Path:
    """The folder of espeak-ng's data: its voices, and what it knows of languages.

    Raises:
        SpeechError: espeak-ng is not installed.
    """
    return Path(_espeak("--version").decode().split("Data at:")[1].strip())


def _espeak(*arguments: str) -> bytes:
    command = shutil.which("espeak-ng")
    if command is None:
        raise SpeechError("espeak-ng is not installed.", "On Debian: apt-get install espeak-ng.")
    done = subprocess.run([command, *arguments], capture_output=True, check=False)
    if done.returncode:
        raise SpeechError(
            f"espeak-ng failed: {done.stderr.decode(errors='replace').strip()}.",
            "See which voices it has: espeak-ng --voices.",
        )
    return done.stdout
