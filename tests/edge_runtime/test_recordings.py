"""Formats of recordings, each intact, joined, cut off and damaged; and the output that is an input.

The clips are speech of the bundled model; all files are made when a test runs.
"""

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from time import process_time

import av
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.audio import Audio, read_audio
from edge_runtime.report import warnings_for
from esrt.arrays import Float32Array
from esrt.bundled import SAMPLES
from esrt.errors import AudioError
from tests.edge_runtime.audio_files import FORMATS, by_ffmpeg, by_libsndfile, video
from tests.edge_runtime.helpers import RATE, python, run, speech, write_wav

LOSSY_DELAY_S = 0.15  # of encoders, at the start
COMPRESSED = [name for name, kind in FORMATS.items() if not kind.pcm]


@cache
def clip(name: str, rate: int = RATE) -> Float32Array:
    samples, _ = soundfile.read(SAMPLES / f"{name}.flac", dtype="float32")
    return soxr.resample(samples, RATE, rate) if rate != RATE else samples


@cache
def recording(name: str, spoken: str = "fra-1") -> bytes:
    """A clip in one of the formats."""
    if name in {"amr", "3gp"} and "libopencore_amrnb" not in av.codecs_available:
        pytest.skip("this FFmpeg has no encoder of AMR")
    return FORMATS[name].encode(clip(spoken, FORMATS[name].rate))


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Assert that nothing, native libraries included, writes to stderr."""
    saved = os.dup(2)
    with TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        log.seek(0)
        assert log.read() == b""


def read(path: Path, data: bytes) -> Audio:
    path.write_bytes(data)
    with silent_stderr():
        return read_audio(path)


def read_or_refuse(path: Path, data: bytes) -> Audio | None:
    """Return the audio, or None if it is refused in one line with exit code 2."""
    try:
        return read(path, data)
    except AudioError as error:
        assert error.exit_code == 2
        assert "\n" not in str(error)
        return None


def likeness(heard: Float32Array, spoken: Float32Array) -> float:
    """Largest correlation under the delay of an encoder, and what a reader cuts off for it."""
    heard, spoken = (x[: min(len(heard), len(spoken))] for x in (heard, spoken))
    length = 1 << (2 * len(heard)).bit_length()
    spectrum = np.fft.rfft(heard, length) * np.conj(np.fft.rfft(spoken, length))
    longest = round(LOSSY_DELAY_S * RATE)
    lags = np.roll(np.fft.irfft(spectrum), longest)[: 2 * longest]
    return float(lags.max() / np.sqrt((heard**2).sum() * (spoken**2).sum()))


def cut_out(data: bytes, count: int) -> bytes:
    middle = len(data) // 2
    return data[:middle] + data[middle + count :]


def overwritten(data: bytes, patch: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + patch + data[middle + len(patch) :]


# Intact files


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(tmp_path: Path, name: str) -> None:
    audio = read(tmp_path / "recording", recording(name))
    spoken = clip("fra-1")
    assert audio.warnings == ()
    assert abs(audio.seconds - len(spoken) / RATE) < LOSSY_DELAY_S
    if FORMATS[name].lossless:
        np.testing.assert_allclose(audio.samples, spoken, atol=1 / 32_768)
    else:
        assert likeness(audio.samples, spoken) > (0.8 if FORMATS[name].rate < RATE else 0.97)


@pytest.mark.parametrize(
    ("container", "subtype", "options"),
    [
        *(("MP3", "MPEG_LAYER_III", {"compression_level": level}) for level in (0.0, 0.5, 0.9)),
        ("MP3", "MPEG_LAYER_III", {"bitrate_mode": "VARIABLE"}),
        ("OGG", "VORBIS", {}),
        ("OGG", "OPUS", {}),
        ("FLAC", "PCM_16", {}),
    ],
)
@pytest.mark.parametrize("spoken", ["eng-1", "deu-1"])
def test_samples_equal_a_single_read(
    tmp_path: Path, container: str, subtype: str, options: dict[str, object], spoken: str
) -> None:
    file = tmp_path / "recording"
    soundfile.write(file, clip(spoken), RATE, format=container, subtype=subtype, **options)
    expected, rate = soundfile.read(file, dtype="float32")
    assert rate == RATE
    np.testing.assert_array_equal(read(file, file.read_bytes()).samples, expected)


def test_mp3_with_tags(tmp_path: Path) -> None:
    plain = recording("mp3")
    picture = b"ID3\x03\x00\x00\x00\x02\x00\x00" + b"APIC" + bytes(32_764)
    comment = b"TAG" + b"a title".ljust(125)
    expected = read(tmp_path / "plain", plain).samples
    for data in (picture + plain, plain + comment):
        audio = read(tmp_path / "tagged", data)
        assert audio.warnings == ()
        np.testing.assert_array_equal(audio.samples, expected)
    padded = read(tmp_path / "padded", picture + bytes(99) + plain + comment)
    assert padded.warnings == (), "some programs leave room behind the tag"
    assert likeness(padded.samples, expected) > 0.99


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_the_sound_of_a_film(tmp_path: Path, container: str) -> None:
    audio = read(tmp_path / "film", video(clip("fra-1"), container))
    assert audio.warnings == (), "the pictures last longer than the sound"
    assert abs(audio.seconds - len(clip("fra-1")) / RATE) < LOSSY_DELAY_S
    assert likeness(audio.samples, clip("fra-1")) > 0.97


def test_a_film_without_sound(tmp_path: Path) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        pictures = output.add_stream("mpeg4", rate=10, width=64, height=64, pix_fmt="yuv420p")
        grey = np.full((64, 64, 3), 128, np.uint8)
        for picture in (av.VideoFrame.from_ndarray(grey, format="rgb24"), None):
            output.mux(pictures.encode(picture))
    (tmp_path / "film").write_bytes(file.getvalue())
    with pytest.raises(AudioError, match="no audio track"):
        read_audio(tmp_path / "film")


def test_a_title_that_is_not_utf_8(tmp_path: Path) -> None:
    data = recording("webm").replace(b"Lavf", b"\xff\xfe\xfd\xfc")
    assert data != recording("webm")
    assert read(tmp_path / "recording", data).warnings == ()


def test_wideband_amr(tmp_path: Path) -> None:
    """FFmpeg has no encoder for it, so the frames have random content: 6.6 kbit/s, 20 ms each."""
    content = np.random.default_rng(2)
    frames = [b"\x04" + content.bytes(17) for _ in range(50)]
    audio = read(tmp_path / "recording", b"#!AMR-WB\n" + b"".join(frames))
    assert (audio.seconds, audio.rate, audio.warnings) == (1.0, 16_000, ())


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_eight_channels(tmp_path: Path, codec: str) -> None:
    samples = np.repeat(clip("fra-1")[:, None], 8, axis=1)
    data = by_ffmpeg(samples, "matroska", codec, layout="7.1", bit_rate=None)
    assert likeness(read(tmp_path / "recording", data).samples, clip("fra-1")) > 0.95


def test_too_many_channels(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.repeat(speech(0.2)[:, None], 33, axis=1))
    with pytest.raises(AudioError, match="33 channels"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("rate", [2_000, 500_000])
def test_absurd_sample_rates(tmp_path: Path, rate: int) -> None:
    write_wav(tmp_path / "a.wav", speech(1.0), rate)
    with pytest.raises(AudioError, match=f"{rate} Hz"):
        read_audio(tmp_path / "a.wav")


# Streams without a length


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0xFFFFFFF0, 0x7FFFF000, 0x7FFFFFFF])
@pytest.mark.parametrize("name", ["wav", "wav-float", "rf64", "aiff"])
def test_sizes_that_were_not_filled_in(tmp_path: Path, name: str, size: int) -> None:
    data = bytearray(recording(name))
    order, chunk = ("big", b"SSND") if name == "aiff" else ("little", b"data")
    for field in (data.index(chunk) + 4, 4):
        data[field : field + 4] = size.to_bytes(4, order)  # type: ignore[arg-type]
        if name == "rf64":
            large = data.index(b"ds64") + 16
            data[large : large + 8] = (0 if size == 0 else 2**64 - 1).to_bytes(8, "little")
        audio = read(tmp_path / "recording", bytes(data))
        assert audio.warnings == ()
        np.testing.assert_array_equal(audio.samples, read(tmp_path / "a", recording(name)).samples)


@pytest.mark.parametrize("size", [0, 24, 2**63, 2**64 - 1])
def test_w64_without_a_size(tmp_path: Path, size: int) -> None:
    data = bytearray(recording("w64"))
    field = data.index(b"data\xf3\xac") + 16
    data[field : field + 8] = size.to_bytes(8, "little")
    np.testing.assert_allclose(
        read(tmp_path / "recording", bytes(data)).samples, clip("fra-1"), atol=1e-4
    )


def test_caf_without_a_size(tmp_path: Path) -> None:
    data = bytearray(recording("caf"))
    field = data.index(b"data") + 4
    data[field : field + 8] = b"\xff" * 8
    audio = read(tmp_path / "recording", bytes(data))
    assert audio.warnings == ()
    np.testing.assert_allclose(audio.samples, clip("fra-1"), atol=1e-4)


def test_au_without_a_size(tmp_path: Path) -> None:
    data = bytearray(recording("au"))
    data[8:12] = b"\xff" * 4
    audio = read(tmp_path / "recording", bytes(data))
    assert audio.warnings == ()
    np.testing.assert_allclose(audio.samples, clip("fra-1"), atol=1e-4)


def test_a_crashed_recorder_before_silence(tmp_path: Path) -> None:
    """Zeros behind a size of 0 could pass for empty chunks."""
    samples = np.concatenate([np.zeros(800, np.float32), clip("fra-1")])
    data = bytearray(by_libsndfile(samples, "WAV", "PCM_16"))
    data[40:44] = bytes(4)
    assert len(read(tmp_path / "a.wav", bytes(data)).samples) == len(samples)


def test_metadata_behind_the_samples_is_no_audio(tmp_path: Path) -> None:
    note = b"LIST" + (10).to_bytes(4, "little") + b"INFOa note"
    odd = by_libsndfile(clip("fra-1")[:9999], "WAV", "PCM_U8")[: 44 + 9999]
    for data in (recording("wav"), odd + b"\0", odd):  # some programs do not align
        expected = read(tmp_path / "a.wav", data).samples
        audio = read(tmp_path / "a.wav", data + note)
        assert audio.warnings == ()
        np.testing.assert_array_equal(audio.samples, expected)


def test_flac_of_a_pipe(tmp_path: Path) -> None:
    data = bytearray(recording("flac"))
    data[21] &= 0xF0
    data[22:42] = bytes(20)  # number of samples, and their MD5
    audio = read(tmp_path / "a.flac", bytes(data))
    assert audio.warnings == ()
    np.testing.assert_allclose(audio.samples, clip("fra-1"), atol=1e-4)


# Joined files


@pytest.mark.parametrize("name", FORMATS)
def test_joined_files(tmp_path: Path, name: str) -> None:
    pieces = [recording(name, spoken) for spoken in ("fra-1", "rus-1", "fra-1")]
    joined = read(tmp_path / "recording", b"".join(pieces))
    expected = np.concatenate([read(tmp_path / "piece", piece).samples for piece in pieces])
    assert joined.warnings == ()
    if name in {"aac", "mp3-no-header"}:  # streams that have no start
        assert abs(len(joined.samples) - len(expected)) < LOSSY_DELAY_S * RATE
        first = len(read(tmp_path / "piece", pieces[0]).samples)
        assert likeness(joined.samples[first : 2 * first], clip("rus-1")[:first]) > 0.95
    else:
        np.testing.assert_allclose(joined.samples, expected, atol=1e-6)


@pytest.mark.parametrize("container", ["WAV", "FLAC", "MP3", "OGG"])
def test_joined_files_of_different_kinds(tmp_path: Path, container: str) -> None:
    stereo = np.repeat(clip("rus-1", 48_000)[:, None], 2, axis=1)
    pieces = [
        by_libsndfile(clip("fra-1"), container),
        by_libsndfile(stereo, container, None, 48_000),
    ]
    audio = read(tmp_path / "recording", b"".join(pieces))
    assert audio.warnings == ()
    assert audio.rate == RATE
    spoken = [len(clip(name)) for name in ("fra-1", "rus-1")]
    assert abs(len(audio.samples) - sum(spoken)) <= 2
    assert likeness(audio.samples[: spoken[0]], clip("fra-1")) > 0.97
    assert likeness(audio.samples[spoken[0] :], clip("rus-1")) > 0.97


@pytest.mark.parametrize("first", ["wav", "flac", "vorbis", "mp3", "m4a", "webm", "wma", "aiff"])
@pytest.mark.parametrize("second", ["wav", "flac", "opus", "m4a"])
def test_another_format_behind_the_end(tmp_path: Path, first: str, second: str) -> None:
    if (first, second) == ("webm", "flac"):
        pytest.skip("WebM may contain the start of FLAC")
    audio = read(tmp_path / "recording", recording(first, "rus-1") + recording(second))
    spoken = len(clip("rus-1")) / RATE
    assert audio.warnings or first == second or audio.seconds > 1.5 * spoken
    assert audio.seconds > spoken - LOSSY_DELAY_S


def test_a_damaged_part_of_joined_files(tmp_path: Path) -> None:
    data = recording("vorbis") + overwritten(recording("vorbis"), bytes(2000)) + recording("vorbis")
    audio = read(tmp_path / "a.ogg", data)
    assert audio.warnings
    assert audio.seconds > 2 * len(clip("fra-1")) / RATE


# Lost parts: all of the audio, a warning, or an error


@pytest.mark.parametrize("name", FORMATS)
def test_half_a_file(tmp_path: Path, name: str) -> None:
    data = recording(name, "eng-1")
    # MP3 and AMR without a header are whole files if they end between two frames.
    audio = read_or_refuse(tmp_path / "recording", data[: len(data) // 2 + 5])
    if name in {"m4a", "alac", "3gp"}:  # their index is at the end
        assert audio is None
        return
    assert audio is not None
    (warning,) = audio.warnings
    missing = len(clip("eng-1")) / RATE - audio.seconds
    assert 1 < missing < 2
    if FORMATS[name].length_in_header:
        amount = re.match(r"about (.*) of 2\.[67] s of the audio is damaged or missing", warning)
        assert amount
        assert abs(float(amount[1]) - missing) < LOSSY_DELAY_S
    else:
        assert "missing" in warning


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("fault", ["zeros", "noise", "hole"])
def test_a_damaged_middle(tmp_path: Path, name: str, fault: str) -> None:
    data, size = recording(name), 600
    noise = np.random.default_rng(3).bytes(size)
    damaged = {
        "zeros": overwritten(data, bytes(size)),
        "noise": overwritten(data, noise),
        "hole": cut_out(data, size),
    }[fault]
    audio = read_or_refuse(tmp_path / "recording", damaged)
    assert audio is None or audio.warnings
    if name in {"flac", "mp3", "mp3-id3", "vorbis", "ogg-flac", "webm-live", "aac"}:
        assert audio is not None, "what is left is read"
        assert audio.seconds > 0.15


@pytest.mark.parametrize("name", ["wav", "wav-float", "rf64", "w64", "aiff", "caf", "au", "alac"])
@pytest.mark.parametrize("change", [-3000, 3000])
def test_samples_removed_or_added(tmp_path: Path, name: str, change: int) -> None:
    data = recording(name)
    middle = len(data) // 2
    wrong = cut_out(data, 3000) if change < 0 else data[:middle] + data[middle - 3000 :]
    audio = read_or_refuse(tmp_path / "recording", wrong)
    assert audio is None or audio.warnings


@pytest.mark.parametrize("name", ["mp3", "mp3-id3", "flac", "vorbis", "opus", "wav", "aac"])
def test_no_cut_is_silent(tmp_path: Path, name: str) -> None:
    data = recording(name)
    whole = len(read(tmp_path / "recording", data).samples)
    for end in range(len(data) // 7, len(data) - 1, len(data) // 23):
        audio = read_or_refuse(tmp_path / "recording", data[:end])
        assert audio is None or audio.warnings or len(audio.samples) >= whole - 320, end


def test_the_commands_print_the_warning(tmp_path: Path, artifact: Path) -> None:
    file = tmp_path / "half.wav"
    file.write_bytes(recording("wav")[:20_000])
    result = run("encode", file, "--out", tmp_path / "packet", "--artifact", artifact, "--json")
    assert result.returncode == 0
    lost = "about 0.5 of 1.2 s of the audio is damaged or missing, and was left out."
    assert result.stderr == f"warning: {file}: {lost}\n"
    assert '"warnings": ["' in result.stdout


# Channels that cancel out


def lossy(stereo: Float32Array, codec: str) -> bytes:
    if codec == "wav":
        return by_libsndfile(stereo, "WAV", "FLOAT")
    container = {"libmp3lame": "mp3", "libopus": "ogg", "aac": "ipod"}[codec]
    return by_ffmpeg(stereo, container, codec, layout="stereo", bit_rate=48_000)


@pytest.mark.parametrize("codec", ["wav", "libmp3lame", "libopus", "aac"])
@pytest.mark.parametrize("noise_db", [None, -30, -6])
def test_channels_that_cancel_out(tmp_path: Path, codec: str, noise_db: float | None) -> None:
    spoken = clip("fra-1")
    noise = np.random.default_rng(1).normal(size=(len(spoken), 2)).astype(np.float32)
    level = 0 if noise_db is None else float(spoken.std() * 10 ** (noise_db / 20))
    stereo = np.stack([spoken, -0.95 * spoken], axis=1) + level * noise
    audio = read(tmp_path / "recording", lossy(stereo.astype(np.float32), codec))
    (warning,) = audio.warnings
    assert "2 channels cancel out" in warning
    assert "channel 1" in warning or noise_db == -6
    assert max(likeness(sign * audio.samples, spoken) for sign in (1, -1)) > 0.85


@pytest.mark.parametrize(
    "second",
    [
        np.zeros(16_000, np.float32),
        speech(1.0),
        np.roll(speech(1.0), 20),
        0.3 * np.random.default_rng(2).normal(size=16_000).astype(np.float32),
        -0.1 * speech(1.0),
    ],
    ids=["silent", "the same", "delayed", "noise", "crosstalk"],
)
def test_other_channels_are_averaged(tmp_path: Path, second: Float32Array) -> None:
    stereo = np.stack([speech(1.0), second], axis=1)
    audio = read(tmp_path / "a.wav", by_libsndfile(stereo, "WAV", "FLOAT"))
    assert audio.warnings == ()
    np.testing.assert_allclose(audio.samples, stereo.mean(axis=1), atol=1e-6)


# Files that are no recordings


def test_pipes_and_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(AudioError, match="is a pipe or a device"):
            read_audio(path)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(recording("wav"))
    for text in ("#EXTM3U\n#EXTINF:1,\na.wav\n", "ffconcat version 1.0\nfile a.wav\n"):
        (tmp_path / "list").write_text(text)
        with pytest.raises(AudioError, match="not audio"):
            read_audio(tmp_path / "list")


@pytest.mark.parametrize("name", FORMATS)
def test_a_header_alone(tmp_path: Path, name: str) -> None:
    for length in (1, 4, 12, 30):
        assert read_or_refuse(tmp_path / "recording", recording(name)[:length]) is None


@pytest.mark.parametrize("name", ["wav", "wav-float", "rf64", "w64", "aiff", "caf", "au"])
def test_no_samples_behind_a_header(tmp_path: Path, name: str) -> None:
    silent = FORMATS[name].encode(np.zeros(RATE, np.float32))
    spoken = FORMATS[name].encode(np.full(RATE, 0.5, np.float32))
    first = next(at for at in range(len(silent)) if silent[at] != spoken[at])
    for length in range(first - 4, first + 1):
        assert read_or_refuse(tmp_path / "recording", silent[:length]) is None


@pytest.mark.parametrize("name", ["flac", "opus", "mp3", "m4a"])
def test_hours_are_refused_at_once(tmp_path: Path, name: str) -> None:
    silence = np.zeros(120 * FORMATS[name].rate, np.float32)
    (tmp_path / "recording").write_bytes(60 * FORMATS[name].encode(silence))
    begin = process_time()
    with pytest.raises(AudioError, match="longer than 4 s"):
        read_audio(tmp_path / "recording", 4.0)
    assert process_time() - begin < 3


def test_a_long_recording_is_not_held_in_memory(tmp_path: Path) -> None:
    header = bytearray(recording("wav")[:44])
    header[40:44] = b"\xff" * 4
    with (tmp_path / "a.wav").open("wb") as file:
        file.write(header)
        file.truncate(100_000_000)
    code = (
        "import pathlib, resource\n"
        "from edge_runtime.audio import read_audio\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        f"    read_audio(pathlib.Path({str(tmp_path / 'a.wav')!r}), 4.0)\n"
        "except Exception as error:\n"
        "    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    result = python("-c", code)
    error, kilobytes = result.stdout.splitlines()
    assert "longer than" in error
    assert int(kilobytes) < 40_000


def test_without_pyav(tmp_path: Path) -> None:
    """The extra edge-formats is missing: an error names both remedies, and the rest is read."""
    for name in ("m4a", "flac", "opus", "mp3"):
        (tmp_path / name).write_bytes(recording(name))
    (tmp_path / "joined").write_bytes(2 * recording("vorbis"))
    (tmp_path / "half").write_bytes(recording("opus", "eng-1")[:-2000])
    code = (
        "import pathlib, sys\n"
        "sys.modules['av'] = None\n"
        "from edge_runtime.audio import read_audio\n"
        "for name in 'flac opus mp3 joined half m4a'.split():\n"
        f"    audio = read_audio(pathlib.Path({str(tmp_path)!r}) / name)\n"
        "    print(name, audio.seconds > 0.5, len(audio.warnings))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines() == [
        *("flac True 0", "opus True 0", "mp3 True 0", "joined True 0", "half True 1")
    ]
    message = result.stderr.splitlines()[-1]
    assert "pip install av" in message
    assert f"ffmpeg -i {tmp_path / 'm4a'} -ac 1 -ar 16000 out.wav" in message


def test_ffmpeg_keeps_its_settings(tmp_path: Path) -> None:
    before = av.logging.get_level(), av.logging.get_skip_repeated()
    assert read(tmp_path / "recording", recording("m4a")[:-100] + bytes(100)) is not None
    assert (av.logging.get_level(), av.logging.get_skip_repeated()) == before


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(list(FORMATS)),
    place=st.floats(0, 1),
    removed=st.integers(0, 2000),
    inserted=st.binary(max_size=400),
)
def test_no_damage_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: float, removed: int, inserted: bytes
) -> None:
    data = recording(name)
    begin = round(place * len(data))
    damaged = data[:begin] + inserted + data[begin + removed :]
    audio = read_or_refuse(tmp_path_factory.getbasetemp() / "damaged", damaged or b"\x00")
    assert audio is None or np.isfinite(audio.samples).all()


@settings(max_examples=100, deadline=None)
@given(
    start=st.sampled_from(
        [b"", b"RIFF", b"OggS", b"fLaC", b"ID3\x03\x00", b"\xff\xfb", b"\xff\xf1"]
    ),
    content=st.binary(min_size=1, max_size=3000),
)
def test_no_bytes_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, start: bytes, content: bytes
) -> None:
    read_or_refuse(tmp_path_factory.getbasetemp() / "random", start + content)


# An output that is an input


@pytest.mark.parametrize("link", ["the same", "symbolic", "hard", "spelling"])
def test_the_output_is_not_the_input(tmp_path: Path, artifact: Path, link: str) -> None:
    file, out = tmp_path / "a.wav", tmp_path / "b"
    file.write_bytes(recording("wav"))
    if link == "symbolic":
        out.symlink_to(file)
    elif link == "hard":
        out.hardlink_to(file)
    else:
        out = file if link == "the same" else tmp_path / ".." / tmp_path.name / "a.wav"
    result = run("encode", file, "--out", out, "--artifact", artifact)
    assert result.returncode == 2
    assert result.stderr == f"error: {out} is an input of this command. Name another file.\n"
    assert file.read_bytes() == recording("wav")


def test_the_output_is_not_the_artifact(tmp_path: Path, artifact: Path, utterance: Path) -> None:
    encoder = artifact / "encoder.onnx"
    before = encoder.read_bytes()
    result = run("encode", utterance, "--out", encoder, "--artifact", artifact)
    assert result.returncode == 2
    assert encoder.read_bytes() == before


def test_warnings_name_the_file() -> None:
    audio = Audio(speech(1.0), warnings=("a part is missing.",))
    assert warnings_for(Path("a.wav"), audio) == ["a.wav: a part is missing."]
