"""Structure of audio files: joined recordings, missing ends, and sizes that nobody filled in.

Decoders believe a header: they stop at the size that it claims, and at the first recording of
several that ``cat`` joined. This module finds both before a decoder runs.
"""

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from edge_runtime.integrity import is_whole_mp3, is_whole_ogg, syncsafe
from edge_runtime.window import Window

_BLOCK = 1 << 20


class _Start:
    """Start of a recording in one format, longer than what audio data contain by chance.

    Args:
        pattern: regular expression.
        needles: parts of it, one of which is in every match; they are quick to find.
    """

    def __init__(self, pattern: bytes, *needles: bytes) -> None:
        self._pattern = re.compile(pattern, re.DOTALL)
        self._needles = needles

    def match(self, data: bytes) -> bool:
        return self._pattern.match(data) is not None

    def find(self, data: bytes) -> Iterator[re.Match[bytes]]:
        """Yield matches in order of their offsets."""
        found = set()
        for needle in self._needles:
            place = data.find(needle)
            while place >= 0:
                found.add(place)
                place = data.find(needle, place + 1)
        end = 0
        for place in sorted(found):
            begin = max(end, place - _LONGEST_START)
            if match := self._pattern.search(data, begin, place + _LONGEST_START):
                end = match.end()
                yield match


_STARTS = {
    "wav": _Start(rb"(?:RIFF|RF64|BW64|RIFX).{4}WAVE", b"WAVE"),
    "aiff": _Start(rb"FORM.{4}AIF[FC]", b"FORM"),
    "w64": _Start(rb"riff\x2e\x91\xcf\x11.{16}wave", b"riff\x2e\x91"),
    "caf": _Start(rb"caff\x00\x01\x00\x00", b"caff"),
    "au": _Start(rb"\.snd\x00\x00", b".snd"),
    "flac": _Start(rb"fLaC[\x00\x80]\x00\x00\x22", b"fLaC"),
    "ogg": _Start(
        rb"OggS\x00\x02.{20}\x01.(?:\x01vorbis|OpusHead|\x7fFLAC|Speex)", b"OggS\x00\x02"
    ),
    # A tag of ID3v2, or the frame with the length that most encoders write first.
    "mp3": _Start(
        rb"ID3[\x02-\x04].{2}[\x00-\x7f]{4}"
        rb"|\xff[\xe2-\xff].{2}(?:.{9}|.{17}|.{32})(?:Xing|Info)",
        *(b"ID3", b"Xing", b"Info"),
    ),
    "amr": _Start(rb"#!AMR(?:-WB)?\n", b"#!AMR"),
    "mp4": _Start(rb"\x00\x00.{2}ftyp", b"ftyp"),
    "matroska": _Start(rb"\x1aE\xdf\xa3.{1,60}(?:webm|matroska)", b"\x1aE\xdf\xa3"),
    "asf": _Start(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\x30\x26\xb2\x75"),
}
_LONGEST_START = 80
# A search for a dozen kinds takes seconds in a gigabyte, which is too long for any model.
_SEARCHED_FOR_OTHERS = 1 << 24
# Kinds whose start is also found within other kinds. That of MP3 is short, and a tag.
_EMBEDDED = {kind: {"mp3", "au"} for kind in _STARTS} | {
    kind: {"mp3", "au", "flac"} for kind in ("ogg", "matroska")
}
_TAG_PADDING = 2048  # largest number of bytes between a tag and the first frame
# MP3 without a tag begins with a frame.
_MP3_FRAME = re.compile(rb"\xff[\xe2-\xff]")
# Programs that write to a pipe put the largest size that their numbers hold, less a few bytes.
_UNKNOWN_SIZE = 0x7FFF0000
_LARGEST = {"I": 2**32 - 1, "q": 2**63 - 1, "Q": 2**64 - 1}
# Real files have a dozen. Without a limit, a file of zeros is millions of empty chunks.
_MOST_CHUNKS = 1000


@dataclass(frozen=True)
class Recording:
    """One recording in a file.

    Attributes:
        stream: its bytes, with sizes that were not filled in corrected.
        kind: format, if it is one of those that are known here.
        present: part of the bytes of audio that the header claims, from 0 to 1.
        damaged: the end is missing, or bytes follow that belong to no audio.
    """

    stream: Window
    kind: str | None
    present: float = 1.0
    damaged: bool = False


def recordings(file: BinaryIO) -> list[Recording]:
    """List the recordings in a file, which is one unless several of a format were joined.

    Raises:
        OSError: the file cannot be read.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    kind = _kind(file.read(_LONGEST_START))
    if kind is None:
        return [Recording(Window(file, 0, size), None)]
    starts, foreign = _starts(file, kind)
    found = [
        _checked(Window(file, start, end), kind)
        for start, end in zip(starts, [*starts[1:], size], strict=True)
    ]
    if foreign:
        found[-1] = replace(found[-1], damaged=True)
    return found


def _kind(head: bytes) -> str | None:
    for kind, pattern in _STARTS.items():
        if pattern.match(head):
            return kind
    return "mp3" if _MP3_FRAME.match(head) else None


def _starts(file: BinaryIO, kind: str) -> tuple[list[int], bool]:
    """Offsets of the recordings of one kind, and whether one of another kind follows."""
    others = [
        start for other, start in _STARTS.items() if other not in {kind, *_EMBEDDED.get(kind, ())}
    ]
    starts, foreign = [0], False
    offset, kept, next_start = 0, b"", 1
    file.seek(0)
    while block := file.read(_BLOCK):
        data = kept + block
        for match in _STARTS[kind].find(data):
            start = offset + match.start()
            tag = match[0].startswith(b"ID3")
            if start >= next_start:
                starts.append(start)
            if start in starts[-1:]:
                # The first frame of MP3 lies behind the tag and belongs to the same recording.
                next_start = start + (syncsafe(match[0][6:10]) + _TAG_PADDING if tag else 1)
        if offset < _SEARCHED_FOR_OTHERS:
            foreign = foreign or any(True for other in others for _ in other.find(data))
        kept = data[-_LONGEST_START:]
        offset += len(data) - len(kept)
        file.seek(offset + len(kept))
    return starts, foreign


def _checked(stream: Window, kind: str | None) -> Recording:
    if kind in _CHECKS:
        stream.seek(0)
        buffered = io.BufferedReader(stream, _BLOCK)
        damaged = not _CHECKS[kind](buffered)
        buffered.detach()  # it would close the stream
        return Recording(stream, kind, damaged=damaged)
    if kind in _LAYOUTS:
        return _with_sizes(stream, kind, _LAYOUTS[kind])
    if kind == "au":  # no chunks: offset and size of the samples
        stream.seek(4)
        offset, size = struct.unpack(">2I", stream.read(8).ljust(8, b"\xff"))
        available = max(0, stream.size - offset)
        if available < size < _UNKNOWN_SIZE:
            return Recording(stream, kind, present=available / size)
        return Recording(stream, kind, damaged=size < available)
    return Recording(stream, kind)


_CHECKS = {"ogg": is_whole_ogg, "mp3": is_whole_mp3}


@dataclass(frozen=True)
class _Layout:
    """Layout of the chunks of a format: a name and a size before each."""

    first: int  # offset of the first chunk
    header: str  # of a chunk, for struct
    data: bytes  # name of the chunk with the samples
    align: int = 2
    size_of_header_counts: bool = False

    def aligned(self, offset: int) -> int:
        return -(-offset // self.align) * self.align


_LAYOUTS = {
    "wav": _Layout(12, "<4sI", b"data"),
    "aiff": _Layout(12, ">4sI", b"SSND"),
    "caf": _Layout(8, ">4sq", b"data", align=1),
    "w64": _Layout(40, "<16sQ", b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a", 8, True),
}


@dataclass(frozen=True)
class _Chunk:
    name: bytes
    field: int  # offset of its size
    body: int  # offset of its content
    size: int  # of its content


def _chunks(stream: Window, layout: _Layout, header: str, position: int) -> Iterator[_Chunk]:
    length = struct.calcsize(header)
    for _ in range(_MOST_CHUNKS):
        stream.seek(position)
        read = stream.read(length)
        if len(read) < length:
            return
        name, size = struct.unpack(header, read)
        if layout.size_of_header_counts:
            size = max(0, size - length)
        yield _Chunk(name, position + len(name), position + length, size)
        position = layout.aligned(position + length + size)


def _with_sizes(stream: Window, kind: str, layout: _Layout) -> Recording:
    """Correct the size of the samples where it was left open, and compare it with the file."""
    stream.seek(0)
    header = layout.header.replace("<", ">") if stream.read(4) == b"RIFX" else layout.header
    large = None  # offset of the 64-bit size of RF64
    for chunk in _chunks(stream, layout, header, layout.first):
        if chunk.name == b"ds64":
            large = chunk.body + 8
        if chunk.name == layout.data:
            break
    else:
        return Recording(stream, kind)
    declared = chunk.size
    if large and not 0 < declared < _UNKNOWN_SIZE:
        stream.seek(large)
        declared = int.from_bytes(stream.read(8), "little")
    available = max(0, stream.size - chunk.body)
    end = _end_of_metadata(stream, layout, header, chunk.body + max(0, declared))
    if (declared <= 0 and end <= chunk.body) or declared >= max(_UNKNOWN_SIZE, available + 1):
        size = available + (chunk.body - chunk.field + 16) * layout.size_of_header_counts
        number = header[0] + header[-1]
        patches = {chunk.field: struct.pack(number, min(size, _LARGEST[header[-1]]))}
        if large:
            patches = {chunk.field: b"\xff" * 4, large: struct.pack("<Q", size)}
        return Recording(stream.patched(patches), kind)
    if declared > available:
        return Recording(stream, kind, present=available / declared)
    stream.seek(end)
    rest = stream.read(_BLOCK).strip(b"\x00")
    return Recording(stream, kind, damaged=len(rest) >= struct.calcsize(header))


def _end_of_metadata(stream: Window, layout: _Layout, header: str, begin: int) -> int:
    """Offset behind the chunks that follow the samples; some programs forget to align them."""
    for end in (layout.aligned(begin), begin):
        for chunk in _chunks(stream, layout, header, end):
            named = re.fullmatch(rb"[ -~]{4}", chunk.name)
            if not named or chunk.body + chunk.size > stream.size:
                break
            end = layout.aligned(chunk.body + chunk.size)
        if end > layout.aligned(begin):
            return end
    return layout.aligned(begin)
