"""Packets kept for a few minutes, so that another language costs no second upload.

They are in this process's memory and nowhere else; at expiry they are overwritten.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from cloud_vllm.settings import Settings
from esrt.errors import Overloaded, TooManyRequests, UnknownFeatures

# The part of the memory that one key may fill, so that it leaves some to the others.
_KEY_SHARE = 4
_RETRY_S = 30


@dataclass(frozen=True)
class _StoredPacket:
    packet: bytearray
    owner: str | None
    expires: float


class PacketStore:
    """Packets under handles that cannot be guessed, each for the key that brought it.

    Args:
        settings: for how long, and how many bytes.
        clock: seconds, monotonic.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = settings.packet_ttl_s
        self._capacity = settings.packet_store_bytes
        self._clock = clock
        # By the handles' hashes, so that a lookup takes the same time whatever it is like; in the
        # order of their expiry.
        self._kept: dict[bytes, _StoredPacket] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, packet: bytes, owner: str | None) -> str:
        """Keep a packet; returns its handle, 256 random bits.

        Raises:
            TooManyRequests: the key has filled its share of the memory.
            Overloaded: the memory is full.
        """
        self.sweep()
        mine = sum(len(kept.packet) for kept in self._kept.values() if kept.owner == owner)
        if owner is not None and mine + len(packet) > self._capacity // _KEY_SHARE:
            raise TooManyRequests(
                "This key keeps as many features as it may.",
                "Delete some with DELETE /v1/features/HANDLE, or wait until they expire.",
                _RETRY_S,
            )
        if self.size + len(packet) > self._capacity:
            raise Overloaded(
                "The memory for features is full.",
                "Send the packet to /v1/translate, with all languages in tgt; or try later.",
                _RETRY_S,
            )
        handle = secrets.token_urlsafe(32)
        expires = self._clock() + self._seconds
        self._kept[_hash(handle)] = _StoredPacket(bytearray(packet), owner, expires)
        self.size += len(packet)
        return handle

    def get(self, handle: str, owner: str | None) -> bytes:
        """A copy of the packet; it stays, and expires when it would have.

        Raises:
            UnknownFeatures: there is none, or not for this key.
        """
        return bytes(self._find(handle, owner).packet)

    def delete(self, handle: str, owner: str | None) -> None:
        """Erase a packet.

        Raises:
            UnknownFeatures: there is none, or not for this key.
        """
        self._find(handle, owner)
        self._erase(_hash(handle))

    def sweep(self) -> None:
        """Erase what has expired."""
        now = self._clock()
        for name, kept in list(self._kept.items()):
            if kept.expires > now:
                break
            self._erase(name)

    def clear(self) -> None:
        """Erase everything."""
        for name in list(self._kept):
            self._erase(name)

    def _find(self, handle: str, owner: str | None) -> _StoredPacket:
        self.sweep()
        kept = self._kept.get(_hash(handle))
        # Another key's features are as unknown as none: the answer tells nothing about them.
        if kept is None or kept.owner != owner:
            raise UnknownFeatures(
                "There are no features under this handle, or no longer.",
                "Send the packet again.",
            )
        return kept

    def _erase(self, name: bytes) -> None:
        packet = self._kept.pop(name).packet
        self.size -= len(packet)
        packet[:] = bytes(len(packet))


def _hash(handle: str) -> bytes:
    return hashlib.sha256(handle.encode("utf-8", "surrogateescape")).digest()
