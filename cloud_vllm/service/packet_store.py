"""Packets kept for a few minutes, so that another language needs no second upload.

Packets exist in the memory of this process only, and are overwritten at expiry.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from cloud_vllm.settings import Settings
from esrt.errors import Overloaded, TooManyRequests, UnknownFeatures

# One key may fill this fraction of the memory, as a divisor.
_KEY_SHARE = 4
_RETRY_S = 30


@dataclass(frozen=True)
class _StoredPacket:
    packet: bytearray
    owner: str | None
    expires: float


class PacketStore:
    """Packets under unguessable handles, each accessible to the API key that stored it.

    Args:
        settings: time to live, and capacity in bytes.
        clock: monotonic clock in seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = settings.packet_ttl_s
        self._capacity = settings.packet_store_bytes
        self._clock = clock
        # Keyed by the hash of the handle, so that the time of a lookup reveals nothing about
        # handles; in the order of expiry.
        self._packets: dict[bytes, _StoredPacket] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self._packets)

    def put(self, packet: bytes, owner: str | None) -> str:
        """Store a packet; returns its handle, 256 random bits.

        Raises:
            TooManyRequests: the key has used its share of the memory.
            Overloaded: the memory is full.
        """
        self.sweep()
        mine = sum(len(stored.packet) for stored in self._packets.values() if stored.owner == owner)
        if owner is not None and mine + len(packet) > self._capacity // _KEY_SHARE:
            raise TooManyRequests(
                "This key has used its share of the memory for features.",
                "Delete features with DELETE /v1/features/HANDLE, or wait until they expire.",
                _RETRY_S,
            )
        if self.size + len(packet) > self._capacity:
            raise Overloaded(
                "The memory for features is full.",
                "Send the packet to /v1/translate with all languages in tgt, or try later.",
                _RETRY_S,
            )
        handle = secrets.token_urlsafe(32)
        expires = self._clock() + self._seconds
        self._packets[_hash(handle)] = _StoredPacket(bytearray(packet), owner, expires)
        self.size += len(packet)
        return handle

    def get(self, handle: str, owner: str | None) -> bytes:
        """A copy of a packet; its expiry does not change.

        Raises:
            UnknownFeatures: there is no such packet for this key.
        """
        return bytes(self._find(handle, owner).packet)

    def delete(self, handle: str, owner: str | None) -> None:
        """Erase a packet.

        Raises:
            UnknownFeatures: there is no such packet for this key.
        """
        self._find(handle, owner)
        self._erase(_hash(handle))

    def sweep(self) -> None:
        """Erase expired packets."""
        now = self._clock()
        for name, stored in list(self._packets.items()):
            if stored.expires > now:
                break
            self._erase(name)

    def clear(self) -> None:
        """Erase all packets."""
        for name in list(self._packets):
            self._erase(name)

    def _find(self, handle: str, owner: str | None) -> _StoredPacket:
        self.sweep()
        stored = self._packets.get(_hash(handle))
        # The answer is the same for another key's features, so it does not reveal that they exist.
        if stored is None or stored.owner != owner:
            raise UnknownFeatures(
                "There are no features under this handle, or they have expired.",
                "Send the packet again.",
            )
        return stored

    def _erase(self, name: bytes) -> None:
        packet = self._packets.pop(name).packet
        self.size -= len(packet)
        packet[:] = bytes(len(packet))


def _hash(handle: str) -> bytes:
    return hashlib.sha256(handle.encode("utf-8", "surrogateescape")).digest()
