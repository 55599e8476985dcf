"""Reader of audio files: mono 16 kHz samples, or an error for a file without usable speech."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from esrt.arrays import Float32Array
from esrt.errors import AudioError
from esrt.features import HOP, N_FFT, SAMPLE_RATE
from esrt.manifest import FrontEnd

# Audio is silent if its peak is below -60 dBFS. The peak, unlike the mean power, is not lowered by
# long pauses around one quiet word. It is measured around the mean to ignore a constant offset.
SILENCE_DBFS = -60.0
# Float files may exceed full scale slightly. A peak of +20 dBFS means another unit, for example
# integers written as floats, and a log-mel spectrogram far outside of the training data.
MAX_PEAK = 10.0
MIN_RATE, MAX_RATE = 4_000, 384_000
# Lowest sample rate without a loss. Of 264 translations of nano's clips, 83 % were right at 16 kHz
# and at 8 kHz, 22 % at 7 kHz, and 8 % at 6 kHz.
MIN_CLEAR_RATE = 8_000
_PCM_BYTES_PER_SAMPLE = 2


@dataclass(frozen=True, eq=False)  # a generated == would fail on arrays
class Audio:
    """Speech.

    Attributes:
        samples: mono, 16 kHz, float32, nominally in [-1, 1], shape (samples,).
        rate: sample rate of the file, in Hz. Frequencies above half of it are missing.
    """

    samples: Float32Array
    rate: int = SAMPLE_RATE

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE

    @property
    def pcm_bytes(self) -> int:
        """Bytes of the audio as 16-bit 16 kHz PCM, the reference for the size of a packet."""
        return len(self.samples) * _PCM_BYTES_PER_SAMPLE


def read_audio(path: Path, front_end: FrontEnd | None = None) -> Audio:
    """Read speech from an audio file in a format of libsndfile; channels are averaged.

    Args:
        path: the file.
        front_end: front end of the model; with it, the length is checked as well, and reading
            stops once the audio is too long.

    Raises:
        AudioError: the file is missing, not audio, empty, silent, not finite, far beyond full
            scale, or too short or too long for the model; or its channels cancel out.
    """
    try:
        with path.open("rb") as stream:
            _check_stream(stream, path)
            audio = _read(stream, path, None if front_end is None else front_end.max_seconds)
    except OSError as error:
        raise AudioError(
            f"{path} cannot be read: {error.strerror}.", "Name an existing audio file."
        ) from error
    _check_level(audio.samples, path)
    if front_end is None:
        return audio
    return Audio(_fit(audio.samples, front_end, path), audio.rate)


def shortest_samples(front_end: FrontEnd) -> int:
    """Smallest number of 16 kHz samples that fills one window and one block of frames."""
    return max(N_FFT, front_end.frame_multiple * HOP)


def _check_stream(stream: BinaryIO, path: Path) -> None:
    if not stream.seekable():
        raise AudioError(f"{path} is a pipe.", "Write the audio to a file first.")
    if not stream.read(1):
        raise AudioError(f"{path} is empty.", "Record or export the audio again.")
    stream.seek(0)


def _read(stream: BinaryIO, path: Path, max_seconds: float | None) -> Audio:
    """Mono 16 kHz samples, read by the second because a header's sample count may be wrong."""
    try:
        with soundfile.SoundFile(stream) as file:
            rate: int = file.samplerate
            if not MIN_RATE <= rate <= MAX_RATE:
                raise AudioError(
                    f"{path} has a sample rate of {rate} Hz, not {MIN_RATE} to {MAX_RATE}.",
                    "Convert it to 16000 Hz.",
                )
            blocks: list[Float32Array] = []
            count, loudest = 0, 0.0
            while len(block := file.read(rate, dtype="float32", always_2d=True)):
                with np.errstate(all="ignore"):  # samples that are not finite are reported below
                    blocks.append(block.mean(axis=1, dtype=np.float32))
                    loudest = max(loudest, float(np.ptp(block, axis=0).max()) / 2)
                count += len(block)
                if max_seconds is not None and count > (max_seconds + HOP / SAMPLE_RATE) * rate:
                    raise _too_long(path, max_seconds)
            channels: int = file.channels
    # soundfile raises TypeError for a file name in .raw, a format without a header.
    except (soundfile.SoundFileError, TypeError) as error:
        raise AudioError(
            f"{path} is not audio that libsndfile reads: {_reason(error)}.",
            "Convert it to WAV or FLAC.",
        ) from error
    if not blocks:
        raise AudioError(f"{path} has no samples.", "Record or export the audio again.")
    samples = np.concatenate(blocks)
    _check_finite(samples, path)  # resampling would spread one bad sample over many
    _check_channels(samples, loudest, channels, path)
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    return Audio(samples, rate)


def _reason(error: Exception) -> str:
    """The message of libsndfile, without the Python object that soundfile puts before it."""
    return str(getattr(error, "error_string", error)).rstrip(".")


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


def _check_channels(samples: Float32Array, loudest: float, channels: int, path: Path) -> None:
    """Reject a file whose channels cancel out when they are averaged.

    If only one of n channels has speech, its average keeps 1/n of the amplitude. The threshold is
    half of that, so that quiet channels are accepted.
    """
    if _is_silent(samples) and not _is_silent_peak(loudest / (2 * channels)):
        raise AudioError(
            f"{path} is silent after its {channels} channels are averaged: they cancel out.",
            "Export only one channel, or invert one of them.",
        )


def _is_silent(samples: Float32Array) -> bool:
    return not len(samples) or _is_silent_peak(float(np.abs(samples - samples.mean()).max()))


def _is_silent_peak(peak: float) -> bool:
    return peak < 10 ** (SILENCE_DBFS / 20)


def _check_level(samples: Float32Array, path: Path) -> None:
    if _is_silent(samples):
        raise AudioError(
            f"{path} is silent: its peak is below {SILENCE_DBFS:g} dBFS.",
            "Check the microphone, or name a file with speech.",
        )


def _fit(samples: Float32Array, front_end: FrontEnd, path: Path) -> Float32Array:
    shortest = shortest_samples(front_end)
    if len(samples) < shortest:
        raise AudioError(
            f"{path} lasts {1000 * len(samples) / SAMPLE_RATE:.0f} ms; this model needs at least"
            f" {1000 * shortest / SAMPLE_RATE:.0f} ms.",
            "Record a whole word or sentence.",
        )
    longest = round(front_end.max_seconds * SAMPLE_RATE)
    if len(samples) > longest + HOP:
        raise _too_long(path, front_end.max_seconds)
    # A recorder or the resampler may round the length up by as much as one hop.
    return samples[:longest]


def _too_long(path: Path, max_seconds: float) -> AudioError:
    return AudioError(
        f"{path} lasts longer than the {max_seconds:g} s that this model takes in one packet.",
        "Cut it into shorter pieces, at pauses.",
    )
