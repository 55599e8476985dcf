"""The 40 conditions under which the clips are recorded, and sounds without speech.

A person understands the words in every condition, so silent failures are counted in all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import log10

import numpy as np
import soxr
from numpy.random import Generator
from scipy.signal import butter, sosfilt

from benchmarks.robustness.recording import AMR, FLAC, MP3, TELEPHONE, Recorder, opus
from esrt.arrays import Float32Array
from esrt.features import SAMPLE_RATE
from training.augment import add_noise, limit_bandwidth, reverberate

# Conditions that only move the speech or change its level; every translation should survive them.
CLEAN = "position and level"
SNRS = (20, 10, 5)
# Room noise, in dB below the speech: a quiet office.
_ROOM_SNR = 35
_TALKERS = 4

Change = Callable[[Float32Array, Generator], Float32Array]


@dataclass(frozen=True)
class Condition:
    """A condition of a recording.

    Attributes:
        name: name in tables.
        group: kind of the condition.
        change: function of a clip, (samples,) at 16 kHz with a peak of at most 1, and of a random
            generator; it gives the recorded sound in the same form.
        recorder: writes the file.
    """

    name: str
    group: str
    change: Change
    recorder: Recorder = FLAC


def conditions(clips: Sequence[Float32Array]) -> list[Condition]:
    """The conditions; babble is made of other clips than the recorded one."""
    babble = partial(_babble, clips)
    return [
        Condition("silence 0.2 s before", CLEAN, _silence(0.2, 0)),
        Condition("silence 1 s before", CLEAN, _silence(1, 0)),
        Condition("silence 3 s before and after", CLEAN, _silence(3, 3)),
        Condition("room noise 1 s before and after", CLEAN, _room(1)),
        Condition("room noise 3 s before and after", CLEAN, _room(3)),
        *(Condition(f"peak {dbfs} dBFS", CLEAN, _peak(dbfs)) for dbfs in (-40, -30, -20, -10)),
        Condition("clipped by 6 dB", CLEAN, _peak(6)),
        Condition("offset 0.2, peak -6 dBFS", CLEAN, _chain(_peak(-6), _offset(0.2))),
        Condition(
            "room noise 1 s, peak -30 dBFS, offset 0.02",
            CLEAN,
            _chain(_room(1), _peak(-30), _offset(0.02)),
        ),
        Condition("silence 3 s, peak -40 dBFS", CLEAN, _chain(_silence(3, 3), _peak(-40))),
        Condition(
            "room noise 1 s, clipped by 6 dB, offset 0.1",
            CLEAN,
            _chain(_room(1), _offset(0.1), _peak(6)),
        ),
        *(
            Condition(f"{name}, {snr} dB", "noise", partial(change, snr))
            for name, change in (("white noise", _white), ("pink noise", _pink), ("babble", babble))
            for snr in SNRS
        ),
        *(
            Condition(f"reverberation, {seconds} s", "room", _reverberation(seconds))
            for seconds in (0.2, 0.4, 0.6, 0.8)
        ),
        Condition("telephone band, 8 kHz", "band", _telephone, TELEPHONE),
        Condition("low-pass 4 kHz", "band", _low_pass),
        *(
            Condition(f"Opus {kbps} kbit/s", "codec", _unchanged, opus(kbps))
            for kbps in (8, 16, 24)
        ),
        Condition("MP3 32 kbit/s", "codec", _unchanged, MP3),
        Condition("AMR 12.2 kbit/s", "codec", _unchanged, AMR),
        *(Condition(f"clipped by {over} dB", "clipping", _peak(over)) for over in (12, 20)),
        *(
            Condition(f"speed {factor:g}", "speed", _speed(factor))
            for factor in (0.9, 0.95, 1.05, 1.1)
        ),
    ]


def _unchanged(audio: Float32Array, random: Generator) -> Float32Array:
    return audio


def _chain(*changes: Change) -> Change:
    def change(audio: Float32Array, random: Generator) -> Float32Array:
        for one in changes:
            audio = one(audio, random)
        return audio

    return change


def _silence(before: float, after: float) -> Change:
    def change(audio: Float32Array, random: Generator) -> Float32Array:
        width = round(before * SAMPLE_RATE), round(after * SAMPLE_RATE)
        return np.asarray(np.pad(audio, width), np.float32)

    return change


def _room(seconds: float) -> Change:
    """Pink noise under the whole recording, and alone for some seconds before and after it."""

    def change(audio: Float32Array, random: Generator) -> Float32Array:
        longer = np.pad(audio, round(seconds * SAMPLE_RATE))
        # `add_noise` takes the mean power of the whole recording, the pauses included.
        return _pink(_ROOM_SNR - 10 * log10(len(longer) / len(audio)), longer, random)

    return change


def _peak(dbfs: float) -> Change:
    """Another level; above 0 dBFS the recording is clipped."""

    def change(audio: Float32Array, random: Generator) -> Float32Array:
        gain = 10 ** (dbfs / 20) / float(np.abs(audio).max())
        return np.clip(gain * audio, -1, 1).astype(np.float32)

    return change


def _offset(share: float) -> Change:
    """Constant offset, as a share of full scale."""

    def change(audio: Float32Array, random: Generator) -> Float32Array:
        return np.asarray(audio + share, np.float32)

    return change


def _white(snr: float, audio: Float32Array, random: Generator) -> Float32Array:
    return _within_scale(add_noise(audio, snr, 0, random))


def _pink(snr: float, audio: Float32Array, random: Generator) -> Float32Array:
    return _within_scale(add_noise(audio, snr, 1, random))


def _babble(
    clips: Sequence[Float32Array], snr: float, audio: Float32Array, random: Generator
) -> Float32Array:
    """Other clips at equal power, each repeated from a random place, as one noise."""
    others = [clip for clip in clips if not np.array_equal(clip, audio)]
    noise = np.zeros(len(audio))
    for number in random.choice(len(others), _TALKERS, replace=False):
        talker = others[number]
        turned = np.roll(talker, random.integers(len(talker)))
        noise += np.resize(turned, len(audio)) / np.sqrt(np.mean(talker**2))
    ratio = np.mean(audio**2) / np.mean(noise**2)
    return _within_scale((audio + np.sqrt(ratio / 10 ** (snr / 10)) * noise).astype(np.float32))


def _reverberation(seconds: float) -> Change:
    def change(audio: Float32Array, random: Generator) -> Float32Array:
        tail = round(seconds * SAMPLE_RATE)
        return _within_scale(reverberate(np.pad(audio, (0, tail)), seconds, random))

    return change


def _telephone(audio: Float32Array, random: Generator) -> Float32Array:
    band = butter(4, (300, 3400), "bandpass", fs=SAMPLE_RATE, output="sos")
    return np.asarray(sosfilt(band, audio), np.float32)


def _low_pass(audio: Float32Array, random: Generator) -> Float32Array:
    return limit_bandwidth(audio, 8_000)


def _speed(factor: float) -> Change:
    """Faster or slower by resampling, so the pitch changes by the same factor."""

    def change(audio: Float32Array, random: Generator) -> Float32Array:
        return np.asarray(soxr.resample(audio, factor * SAMPLE_RATE, SAMPLE_RATE), np.float32)

    return change


def _within_scale(audio: Float32Array) -> Float32Array:
    """Lower the level where the sound exceeds full scale."""
    return np.asarray(audio / max(1.0, float(np.abs(audio).max())), np.float32)
