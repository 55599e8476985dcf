"""Decoders of recordings: libsndfile for intact files of its formats, FFmpeg for all others.

libsndfile comes with soundfile and is small. It stops at the first damage, and lacks the formats of
phones. FFmpeg, in the package ``av``, goes on behind a damage; it is an extra because of its size.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from edge_runtime.containers import Recording
from edge_runtime.window import Window
from esrt.arrays import Float32Array
from esrt.errors import AudioError
from esrt.native_log import captured_native_log

if TYPE_CHECKING:
    from av import AudioStream
    from av.container import InputContainer

MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_CHANNELS = 32
# Formats whose damage libsndfile, or the module `containers`, notices.
_CHECKED_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "FLAC", "OGG", "MP3"}
# FFmpeg guesses among hundreds of formats, some of which open other files or addresses.
_FFMPEG_FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,flac,flv,matroska,mov,mp3,mpegts,ogg,tta,voc,w64,wav,wv"
)
# Most encoders pad the start and the end, and not all headers tell how much. A difference to the
# length in the header is a loss if it is longer.
_PADDING_S, _EXACT_S = 0.15, 0.02
_EXACT_CODECS = re.compile(r"flac|mp3.*|opus|pcm_.*|vorbis")
# Damage can look like a frame of another format. Real parts of another format are longer.
_SHORTEST_PART_S = 0.1


@dataclass
class Decoded:
    """Samples of a recording, and what is known of samples that are missing.

    Attributes:
        parts: sample rate in Hz and samples, shape (samples, channels), of each part in order. All
            samples are one part, unless the format changes within the recording.
        missing: length of what could not be decoded, in seconds, as far as it is known.
        damaged: something is missing or wrong, also where its length is not known.
    """

    parts: list[tuple[int, Float32Array]] = field(default_factory=list)
    missing: float = 0.0
    damaged: bool = False

    @property
    def seconds(self) -> float:
        """Length of the samples in seconds."""
        return sum(len(samples) / rate for rate, samples in self.parts)


class NotReadable(Exception):
    """Bytes that a decoder cannot read; the message is the reason."""


class NoFfmpeg(NotReadable):
    """Bytes that libsndfile cannot read, in an environment without the package ``av``."""


def decode(recording: Recording, path: Path, limit: float | None) -> Decoded:
    """Decode a recording.

    Args:
        recording: the recording.
        path: its file, for the messages.
        limit: length in seconds. Decoding stops when the samples are longer.

    Raises:
        NotReadable: it is not audio, or its format is not known.
        AudioError: its sample rate or number of channels is out of bounds.
    """
    decoded, reliable, reason = Decoded(), False, ""
    try:
        decoded, reliable = _libsndfile(recording, path, limit)
    except NotReadable as error:
        reason = str(error)
    if not reliable or recording.damaged:
        try:
            decoded = _ffmpeg(recording.stream, path, limit)
        except NotReadable as error:
            if reason and (recording.kind is None or isinstance(error, NoFfmpeg)):
                raise type(error)(reason) from error
            if not decoded.parts:
                raise
    if 0 < recording.present < 1:
        absent = decoded.seconds * (1 / recording.present - 1)
        decoded.missing = max(decoded.missing, absent)
    decoded.damaged |= recording.damaged or decoded.missing > 0
    return decoded


def _libsndfile(recording: Recording, path: Path, limit: float | None) -> tuple[Decoded, bool]:
    """Decode by libsndfile, in one call: MP3, Vorbis and Opus need the samples before.

    Returns:
        The samples, and whether they surely are all that the file has.

    Raises:
        NotReadable: libsndfile does not read the format, or met a damage.
        AudioError: the sample rate or the number of channels is out of bounds.
    """
    recording.stream.seek(0)
    # libmpg123, which reads MP3 for libsndfile, reports damage only on stderr.
    chatty = recording.kind in {None, "mp3"}
    try:
        with (
            captured_native_log() if chatty else nullcontext() as log,
            soundfile.SoundFile(recording.stream) as file,
        ):
            _check_format(path, file.samplerate, file.channels)
            count: int = file.frames
            if limit is not None:
                count = min(count, int(limit * file.samplerate) + 1)
            file.seek(0)  # as soundfile.read does: libmpg123 rounds differently after it
            samples = file.read(count, dtype="float32", always_2d=True)
            decoded = Decoded([(file.samplerate, samples)] if len(samples) else [])
            whole = len(samples) == count
            if not whole:
                decoded.missing = (file.frames - len(samples)) / file.samplerate
            silent = log is None or not log()
            return decoded, whole and silent and file.format in _CHECKED_FORMATS
    except soundfile.SoundFileError as error:
        raise NotReadable(str(getattr(error, "error_string", error)).rstrip(".")) from error
    except (MemoryError, ValueError) as error:  # numpy's, about the size of the array
        raise NotReadable("its header has no length, or an impossible one") from error


def _check_format(path: Path, rate: int, channels: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(
            f"{path} has a sample rate of {rate} Hz, not {MIN_RATE} to {MAX_RATE}.",
            "Convert it to 16000 Hz.",
        )
    if channels > MAX_CHANNELS:
        raise AudioError(
            f"{path} has {channels} channels, more than {MAX_CHANNELS}.", "Export it as mono."
        )


def _ffmpeg(stream: Window, path: Path, limit: float | None) -> Decoded:
    """Decode by FFmpeg, and go on behind a damage.

    Raises:
        NotReadable: FFmpeg does not read the format, or finds no samples.
        NoFfmpeg: the package ``av`` is not installed.
        AudioError: the sample rate or the number of channels is out of bounds.
    """
    try:
        import av
    except ImportError as error:
        raise NoFfmpeg("the package av, which carries FFmpeg, is not installed") from error
    open_input: Callable[..., InputContainer] = av.open
    # Titles that are not UTF-8 must not be an error. Version 19 has no option, and replaces them.
    tolerant = {"metadata_errors": "replace"} if av.__version__.startswith("18.") else {}
    stream.seek(0)
    result = Decoded()
    frames: list[tuple[int, Float32Array]] = []
    expected, exact = 0.0, False
    with _ffmpeg_log() as log:
        try:
            options = {"format_whitelist": _FFMPEG_FORMATS}
            with open_input(stream, options=options, **tolerant) as container:
                audio = container.streams.best("audio")
                if not isinstance(audio, av.AudioStream):
                    raise NotReadable("it has no audio track")
                if audio.codec_context is None:
                    raise NotReadable("its audio has an unknown codec")
                expected = _expected(container, audio)
                exact = bool(_EXACT_CODECS.fullmatch(audio.codec.name))
                seconds = 0.0
                for rate, samples in _frames(container, audio, path, result):
                    frames.append((rate, samples))
                    seconds += len(samples) / rate
                    if limit is not None and seconds > limit:
                        break
        except av.FFmpegError as error:
            if not frames:
                raise NotReadable(_last_error(log) or error.strerror or "unknown") from error
            result.damaged = True
        if not frames:
            raise NotReadable(_last_error(log) or "its audio cannot be decoded")
    parts = [
        (rate, np.concatenate([samples for _, samples in run]))
        for (rate, _), run in groupby(frames, lambda frame: (frame[0], frame[1].shape[1]))
    ]
    result.parts = [part for part in parts if len(part[1]) >= _SHORTEST_PART_S * part[0]] or parts
    result.damaged |= len(result.parts) < len(parts) or _last_error(log) is not None
    shortfall = expected - result.seconds
    estimated = any("Estimating duration" in message for _, _, message in log)
    if result.damaged or (shortfall > (_EXACT_S if exact else _PADDING_S) and not estimated):
        result.missing = max(result.missing, shortfall)
    return result


def _frames(
    container: "InputContainer", audio: "AudioStream", path: Path, result: Decoded
) -> Iterator[tuple[int, Float32Array]]:
    """Sample rate and samples of each frame; what cannot be decoded is noted in ``result``.

    Raises:
        AudioError: the sample rate or the number of channels is out of bounds.
        FFmpegError: the container is damaged, and nothing behind that can be found.
    """
    from av import AudioResampler, FFmpegError

    if audio.codec.name == "flac":  # its checksums find any damage
        audio.codec_context.options = {"err_detect": "crccheck+explode"}
    # To interleaved float32. The planes of a frame cannot be read directly: PyAV does not count
    # eight of them right, and crashes.
    converters: dict[tuple[str, str, int], AudioResampler] = {}
    for packet in container.demux(audio):
        try:
            for frame in audio.decode(packet):
                rate, channels = frame.sample_rate, frame.layout.nb_channels
                _check_format(path, rate, channels)
                key = frame.format.name, frame.layout.name, rate
                for packed in converters.setdefault(key, AudioResampler("flt")).resample(frame):
                    yield rate, packed.to_ndarray().reshape(-1, channels).astype(np.float32)
        except (FFmpegError, ValueError):
            result.missing += float((packet.duration or 0) * (packet.time_base or 0))
            result.damaged = True


def _expected(container: "InputContainer", audio: "AudioStream") -> float:
    """Length in seconds that the headers claim for an audio track; 0 if they claim none."""
    if audio.duration and audio.time_base:
        return float(audio.duration * audio.time_base)
    # The length of the file may be that of its video.
    alone = len(container.streams) == 1
    return container.duration / 1e6 if alone and container.duration else 0.0


def _last_error(log: list[tuple[int, str, str]]) -> str | None:
    from av.logging import ERROR

    return next((text.strip() for level, _, text in reversed(log) if level <= ERROR), None)


@contextmanager
def _ffmpeg_log() -> Iterator[list[tuple[int, str, str]]]:
    """Collect FFmpeg's warnings and errors (level, source, message); restore the settings after."""
    from av import logging

    level, skip = logging.get_level(), logging.get_skip_repeated()
    logging.set_level(logging.WARNING)
    logging.set_skip_repeated(False)
    try:
        with logging.Capture() as log:
            yield log
    finally:
        logging.set_level(level)
        logging.set_skip_repeated(skip)
