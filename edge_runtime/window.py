"""Part of a file as a file of its own, so that decoders see one recording with right sizes."""

import io
from collections.abc import Mapping
from typing import BinaryIO


class Window(io.RawIOBase):
    """Part of a file as a file of its own, with some bytes replaced.

    Args:
        file: the whole file.
        start: offset of the first byte.
        end: offset behind the last byte.
        patches: offset from ``start``, and the bytes that replace those of the file there.
    """

    def __init__(
        self, file: BinaryIO, start: int, end: int, patches: Mapping[int, bytes] | None = None
    ) -> None:
        super().__init__()
        self._file, self._start, self.size = file, start, end - start
        self._patches = dict(patches or {})
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset in bytes, and return it counted from the start."""
        self._position = max(0, (0, self._position, self.size)[whence] + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer as far as there are bytes, and return their number."""
        begin = min(self._position, self.size)
        self._file.seek(self._start + begin)
        data = bytearray(self._file.read(min(len(buffer), self.size - begin)))
        for offset, patch in self._patches.items():
            for place, byte in enumerate(patch, offset - begin):
                if 0 <= place < len(data):
                    data[place] = byte
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def patched(self, patches: Mapping[int, bytes]) -> "Window":
        """Return the same part with other bytes replaced."""
        return Window(self._file, self._start, self._start + self.size, patches)
