"""Reader of audio files: mono 16 kHz samples, or an error for a file without usable speech."""

import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soxr

from edge_runtime.containers import recordings
from edge_runtime.decoders import Decoded, NoFfmpeg, NotReadable, decode
from esrt.arrays import Float32Array
from esrt.errors import AudioError
from esrt.features import HOP, SAMPLE_RATE

# Audio is silent if its peak is below -60 dBFS. The peak, unlike the mean power, is not lowered by
# long pauses around one quiet word. It is measured around the mean to ignore a constant offset.
SILENCE_DBFS = -60.0
# Float files may exceed full scale slightly. A peak of +20 dBFS means another unit, for example
# integers written as floats, and a log-mel spectrogram far outside of the training data.
MAX_PEAK = 10.0
# Lowest sample rate without a loss. Of 264 translations of nano's clips, 83 % were right at 16 kHz
# and at 8 kHz, 22 % at 7 kHz, and 8 % at 6 kHz.
MIN_CLEAR_RATE = 8_000
# Channels cancel out if their average has less than this part of the amplitude that the loudest
# channel alone would leave. Uncorrelated channels leave more than all of it; speech in opposite
# phase under 5 dB weaker noise leaves 0.7 of it.
_CANCELLED = 0.75


@dataclass(frozen=True, eq=False)  # a generated == would fail on arrays
class Audio:
    """A recording.

    Attributes:
        samples: mono, 16 kHz, float32, nominally in [-1, 1], shape (samples,).
        rate: sample rate of the file, in Hz. Frequencies above half of it are missing.
        warnings: sentences about lost parts of the file, or about a channel that was chosen.
    """

    samples: Float32Array
    rate: int = SAMPLE_RATE
    warnings: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE


def read_audio(path: Path, max_seconds: float | None = None) -> Audio:
    """Read an audio file; channels are averaged, joined recordings follow each other.

    Args:
        path: the file.
        max_seconds: longest recording that is read; ``None`` for any.

    Raises:
        AudioError: the file is missing, not audio, empty, silent, not finite, far beyond full
            scale, or longer than ``max_seconds``.
    """
    try:
        _check_file(path)
        with path.open("rb") as file:
            audio = _read(file, path, max_seconds)
    except OSError as error:
        raise AudioError(
            f"{path} cannot be read: {error.strerror}.", "Name an existing audio file."
        ) from error
    _check_level(audio.samples, path)
    return audio


def _check_file(path: Path) -> None:
    status = path.stat()  # before it is opened: opening a named pipe waits for a writer
    if stat.S_ISDIR(status.st_mode):
        raise AudioError(f"{path} is a directory.", "Name an audio file.")
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(f"{path} is a pipe or a device.", "Write the audio to a file first.")
    if not status.st_size:
        raise AudioError(f"{path} is empty.", "Record or export the audio again.")


def _read(file: BinaryIO, path: Path, max_seconds: float | None) -> Audio:
    """Mono 16 kHz samples of all recordings in a file."""
    limit = None if max_seconds is None else max_seconds + HOP / SAMPLE_RATE
    decoded, unreadable = Decoded(), None
    for recording in recordings(file):
        try:
            one = decode(recording, path, limit)
        except NotReadable as error:
            unreadable = unreadable or _not_audio(path, error)
            continue
        decoded.parts += one.parts
        decoded.missing += one.missing
        decoded.damaged |= one.damaged
        if max_seconds is not None and limit is not None and decoded.seconds > limit:
            raise _too_long(path, max_seconds)
    if not decoded.parts:
        raise unreadable or AudioError(
            f"{path} has no samples.", "Record or export the audio again."
        )
    warnings: list[str] = []
    samples = np.concatenate([_mono(rate, part, path, warnings) for rate, part in decoded.parts])
    if decoded.missing >= 0.05:
        whole = decoded.seconds + decoded.missing
        lost = f"about {decoded.missing:.1f} of {whole:.1f} s of the audio"
        warnings.append(f"{lost} is damaged or missing, and was left out.")
    elif decoded.damaged or unreadable:
        warnings.append("the file is damaged or ends early; a part of the audio may be missing.")
    lowest = min(rate for rate, _ in decoded.parts)
    return Audio(samples, lowest, tuple(dict.fromkeys(warnings)))


def _not_audio(path: Path, error: NotReadable) -> AudioError:
    convert = f"ffmpeg -i {shlex.quote(str(path))} -ac 1 -ar 16000 out.wav"
    if isinstance(error, NoFfmpeg):
        return AudioError(
            f"{path} is not audio that libsndfile reads: {error}.",
            f"Install FFmpeg's decoders (pip install av), or convert the file ({convert}).",
        )
    return AudioError(f"{path} is not audio, or is damaged: {error}.", "Record or export it again.")


def _mono(rate: int, channels: Float32Array, path: Path, warnings: list[str]) -> Float32Array:
    """Average of the channels at 16 kHz, or the loudest channel if they cancel out.

    Args:
        rate: sample rate in Hz.
        channels: samples, shape (samples, channels).
        path: the file, for the messages.
        warnings: gets a sentence if one channel was taken.
    """
    with np.errstate(all="ignore"):  # samples that are not finite are reported below
        samples: Float32Array = channels.mean(axis=1, dtype=np.float32)
        levels = channels.std(axis=0, dtype=np.float64)
        count = len(levels)
        # If only one of n channels has speech, the average keeps 1/n of its amplitude.
        if count > 1 and samples.std(dtype=np.float64) < _CANCELLED * levels.max() / count:
            loudest = int(levels.argmax())
            samples = channels[:, loudest]
            if not _is_silent(samples):
                warnings.append(
                    f"its {count} channels cancel out when they are averaged; only channel"
                    f" {loudest + 1}, the loudest, was used."
                )
    _check_finite(samples, path)  # resampling would spread one bad sample over many
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    return samples


def _check_finite(samples: Float32Array, path: Path) -> None:
    bad = ~np.isfinite(samples)
    if bad.any():
        raise AudioError(
            f"{path} has {int(bad.sum())} samples that are not finite numbers"
            f" (the first is number {int(bad.argmax())}).",
            "Export the audio again, as 16-bit integers.",
        )
    peak = float(np.abs(samples).max())
    if peak > MAX_PEAK:
        raise AudioError(
            f"{path} has a peak of {peak:.4g}, but full scale is 1.",
            "Scale the samples to [-1, 1], or export them as integers.",
        )


def _is_silent(samples: Float32Array) -> bool:
    peak = float(np.abs(samples - samples.mean()).max()) if len(samples) else 0.0
    return peak < 10 ** (SILENCE_DBFS / 20)


def _check_level(samples: Float32Array, path: Path) -> None:
    if _is_silent(samples):
        raise AudioError(
            f"{path} is silent: its peak is below {SILENCE_DBFS:g} dBFS.",
            "Check the microphone, or name a file with speech.",
        )


def _too_long(path: Path, max_seconds: float) -> AudioError:
    return AudioError(
        f"{path} lasts longer than {max_seconds:g} s.",
        "Cut it into shorter pieces, at pauses.",
    )
