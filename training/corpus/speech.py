"""Speech synthesis by espeak-ng: utterances with random speakers, and their audio."""

import io
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from random import Random
from typing import TypeVar

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from rich.progress import track

from esrt.arrays import Float32Array
from esrt.cores import usable_cores
from esrt.errors import EsrtError
from esrt.features import SAMPLE_RATE
from training.corpus.synthesis_languages import SYNTHESIS_LANGUAGES

# Audio as stored in a corpus.
Samples = NDArray[np.int16]
_Sound = TypeVar("_Sound", Samples, Float32Array)

# espeak-ng's voice variants; only the test split has the unseen ones.
VARIANTS = ("m1", "m3", "m4", "m6", "m7", "f1", "f2", "f4")
UNSEEN_VARIANTS = ("m2", "m5", "f3")


class SpeechError(EsrtError):
    """espeak-ng is missing or failed."""


@dataclass(frozen=True)
class Utterance:
    """A sentence with its speaker.

    Attributes:
        language: ISO 639-3 code.
        text: the sentence.
        variant: name of the voice variant.
        speed: words per minute.
        pitch: from 0 to 99.
    """

    language: str
    text: str
    variant: str
    speed: int
    pitch: int


def make_utterance(
    language: str, text: str, random: Random, variants: Sequence[str] = VARIANTS
) -> Utterance:
    """Give a sentence a random speaker."""
    return Utterance(
        language,
        text,
        random.choice(variants),
        random.randrange(170, 211),
        random.randrange(35, 66),
    )


def speak(utterance: Utterance, data: Path | None = None) -> Float32Array:
    """Synthesize an utterance, mono at 16 kHz.

    Args:
        utterance: sentence and speaker.
        data: folder that holds ``espeak-ng-data`` with other voices; the installed one if
            ``None``.

    Raises:
        SpeechError: espeak-ng is not installed, or failed.
    """
    voice = f"{SYNTHESIS_LANGUAGES[utterance.language].voice}+{utterance.variant}"
    arguments = ["-v", voice, "-s", str(utterance.speed), "-p", str(utterance.pitch), "--stdout"]
    # After "--" a text that begins with a hyphen is not an option.
    wave = run_espeak(*arguments, "--", utterance.text, data=data)
    audio, rate = soundfile.read(io.BytesIO(wave), dtype="float32")
    resampled: Float32Array = soxr.resample(audio, rate, SAMPLE_RATE)
    return resampled


def stretch(audio: _Sound, samples: int) -> _Sound:
    """Resample to a number of samples; a small change in length hardly changes the pitch."""
    stretched: _Sound = soxr.resample(audio, len(audio), samples)[:samples]
    return np.pad(stretched, (0, samples - len(stretched)))


def speak_samples(utterance: Utterance, data: Path | None = None) -> Samples:
    """Synthesize an utterance as int16 samples; see `speak`."""
    audio = np.clip(speak(utterance, data), -1, 1)
    return np.round(audio * 32767).astype(np.int16)


def speak_parallel(
    utterances: Sequence[Utterance], description: str, data: Iterable[Path | None] = repeat(None)
) -> list[Samples]:
    """Synthesize utterances as int16 samples, in one process per processor.

    Args:
        utterances: sentences and speakers.
        description: label of the progress bar.
        data: folder of espeak-ng's voices for each utterance; see `speak`.

    Raises:
        SpeechError: espeak-ng is not installed, or failed.
    """
    with ProcessPoolExecutor(usable_cores()) as pool:
        audio = pool.map(speak_samples, utterances, data, chunksize=32)
        return list(track(audio, description=description, total=len(utterances)))


def espeak_version() -> str:
    """Version of espeak-ng, as the program prints it.

    Raises:
        SpeechError: espeak-ng is not installed.
    """
    return run_espeak("--version").decode().split("Data at")[0].strip()


def espeak_data() -> Path:
    """Folder of espeak-ng's voices and language data.

    Raises:
        SpeechError: espeak-ng is not installed.
    """
    return Path(run_espeak("--version").decode().split("Data at:")[1].strip())


def run_espeak(*arguments: str, data: Path | None = None) -> bytes:
    """Run espeak-ng; return its output.

    Raises:
        SpeechError: espeak-ng is not installed, or failed.
    """
    command = shutil.which("espeak-ng")
    if command is None:
        raise SpeechError("espeak-ng is not installed.", "On Debian: apt-get install espeak-ng.")
    environment = os.environ | ({"ESPEAK_DATA_PATH": str(data)} if data else {})
    done = subprocess.run([command, *arguments], capture_output=True, check=False, env=environment)
    if done.returncode:
        raise SpeechError(
            f"espeak-ng failed: {done.stderr.decode(errors='replace').strip()}.",
            "List its voices: espeak-ng --voices.",
        )
    return done.stdout
