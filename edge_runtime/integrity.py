"""Checks of formats whose decoders skip damage without a word: Ogg and MP3."""

import io
import zlib
from typing import BinaryIO

# Bit rates of MP3 by their index, for MPEG-1 and for the lower sample rates of MPEG-2 and 2.5.
_MPEG1_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def is_whole_ogg(stream: BinaryIO) -> bool:
    """Whether the pages of an Ogg file follow each other, unchanged, up to one marked as last."""
    following: dict[bytes, int] = {}  # serial number of a stream: number of its next page
    last = False
    while header := stream.read(27):
        sizes = stream.read(header[26]) if len(header) == 27 else b""
        body = stream.read(sum(sizes))
        page = header[:22] + bytes(4) + header[26:] + sizes + body
        serial, number, checksum = header[14:18], header[18:22], header[22:26]
        if (
            not header.startswith(b"OggS")
            or len(body) < sum(sizes)
            or int.from_bytes(checksum, "little") != _ogg_checksum(page)
            or int.from_bytes(number, "little") != following.get(serial, 0)
        ):
            return False
        following[serial] = int.from_bytes(number, "little") + 1
        last = bool(header[5] & 4)
    return last


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 of Ogg: zlib's with the bits of each byte and of the result in reverse order."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REVERSED), "big")


def is_whole_mp3(stream: BinaryIO) -> bool:
    """Whether the frames of an MP3 file follow each other, and the last one is complete."""
    tag = stream.read(10)
    stream.seek(10 + syncsafe(tag[6:]) if tag.startswith(b"ID3") else 0)
    while (byte := stream.read(1)) == b"\x00":  # padding behind the tag
        pass
    stream.seek(-len(byte), io.SEEK_CUR)
    while len(header := stream.read(4)) == 4 and header[0] == 0xFF:
        version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
        bitrate, rate = header[2] >> 4, header[2] >> 2 & 3
        if layer != 1 or not bitrate:  # layer III is 1; other layers, and free bit rates, have no
            return True  # known length
        if version == 1 or bitrate == 15 or rate == 3 or header[1] < 0xE0:
            return False
        kbps = (_MPEG1_KBPS if version == 3 else _MPEG2_KBPS)[bitrate]
        hertz = (44_100, 48_000, 32_000)[rate] >> (2, 0, 1, 0)[version]
        length = (144 if version == 3 else 72) * 1000 * kbps // hertz + (header[2] >> 1 & 1)
        if len(stream.read(length - 4)) < length - 4:
            return False
    rest = header + stream.read()
    return rest.startswith((b"TAG", b"APETAGEX", b"LYRICS", b"ID3")) or not rest.strip(b"\x00")


def syncsafe(data: bytes) -> int:
    """Number of 7 bits a byte, as tags of ID3v2 have it."""
    return sum(byte << shift for byte, shift in zip(data, (21, 14, 7, 0), strict=True))
