"""API keys: random, shown once, kept as SHA-256 hashes in a file that `KeyRing` reads.

A key is ``esrt_ID_SECRET``. The id finds the entry and may appear in logs; the secret holds 256
random bits, so an unsalted fast hash is enough: there is no dictionary to try.
"""

import fcntl
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from esrt.errors import NotReady, RequestError

_PREFIX = "esrt"
_VERSION = 1
# Compared with when the id is unknown, so that the time taken does not tell ids that exist.
_NO_HASH = "0" * 64


class Scope(StrEnum):
    """What a key is for."""

    TRANSLATE = "translate"
    METRICS = "metrics"


@dataclass(frozen=True)
class KeyEntry:
    """What the file holds of a key; nothing from which the key could be made.

    Attributes:
        id: the part of the key that is not secret.
        name: whose it is, for people.
        scope: what it is for.
        created: when, ISO 8601 in UTC.
        sha256: the hash of the whole key, in hexadecimal.
    """

    id: str
    name: str
    scope: Scope
    created: str
    sha256: str


def create(path: Path, name: str, scope: Scope) -> str:
    """Add a key to the file, which is made if it is not there; returns the key, this one time.

    Raises:
        RequestError: the file is damaged or cannot be written.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with _locked(path):
        entries = read(path) if path.exists() else ()
        taken, identity = {entry.id for entry in entries}, secrets.token_hex(4)
        while identity in taken:
            identity = secrets.token_hex(4)
        key = f"{_PREFIX}_{identity}_{secrets.token_urlsafe(32)}"
        _write(path, [*entries, KeyEntry(identity, name, scope, created, _hash(key))])
    return key


def revoke(path: Path, identity: str) -> KeyEntry:
    """Take a key out of the file; a running gateway refuses it from the next request on.

    Raises:
        RequestError: there is no key of that id, or the file is damaged or cannot be written.
    """
    with _locked(path):
        entries = read(path)
        for entry in entries:
            if entry.id == identity:
                _write(path, [other for other in entries if other is not entry])
                return entry
    raise RequestError(f"{path} has no key with the id {identity}.", "See: keys list.")


def read(path: Path) -> tuple[KeyEntry, ...]:
    """The keys of a file.

    Raises:
        RequestError: it is missing or damaged.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
        if document["version"] != _VERSION:
            raise ValueError(f"version {document['version']}")
        return tuple(
            KeyEntry(**{**fields, "scope": Scope(fields["scope"])}) for fields in document["keys"]
        )
    except OSError as error:
        raise RequestError(
            f"The key file {path} cannot be read: {error.strerror}.",
            "Make one: python -m cloud_vllm keys create --key-file FILE --name NAME",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"The key file {path} is damaged.", "Restore it, or create its keys anew."
        ) from error


class KeyRing:
    """The keys that a gateway accepts: those of the file, as it is now.

    Raises:
        RequestError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _state(path)
        self._entries = {entry.id: entry for entry in read(path)}

    def find(self, key: str) -> KeyEntry | None:
        """The entry of a key, or ``None`` if it is not valid.

        Raises:
            NotReady: the file has become unreadable; nobody is let in until it is repaired.
        """
        self._refresh()
        entry = self._entries.get(_identity(key))
        expected = entry.sha256 if entry else _NO_HASH
        return entry if hmac.compare_digest(_hash(key), expected) else None

    def holds(self, entry: KeyEntry) -> bool:
        """Whether a key that was found earlier is still valid.

        Raises:
            NotReady: as `find`.
        """
        self._refresh()
        return self._entries.get(entry.id) == entry

    def _refresh(self) -> None:
        try:
            state = _state(self._path)
            if state != self._seen:
                entries = {entry.id: entry for entry in read(self._path)}
                self._seen, self._entries = state, entries
        except RequestError as error:
            raise NotReady(
                "API keys cannot be checked at the moment.", "Tell the operator; try later."
            ) from error


def _identity(key: str) -> str:
    prefix, _, rest = key.partition("_")
    return rest.partition("_")[0] if prefix == _PREFIX else ""


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does; `None` while there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _write(path: Path, entries: Sequence[KeyEntry]) -> None:
    """Replace the file in one step, readable by its owner only."""
    text = json.dumps({"version": _VERSION, "keys": [asdict(e) for e in entries]}, indent=2)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - has a descriptor
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two commands at once do not lose each other's keys; the lock is a file beside."""
    try:
        lock = path.with_name(f".{path.name}.lock").open("w")
    except OSError as error:
        raise _not_writable(path, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _not_writable(path: Path, error: OSError) -> RequestError:
    return RequestError(
        f"The key file {path} cannot be written: {error.strerror}.",
        "Name a file in a folder that is there and that you may write to.",
    )
