"""API keys: random, shown once, stored as SHA-256 hashes in a file that `KeyRing` reads.

A key is ``esrt_ID_SECRET``. The id identifies the entry and may appear in logs. The secret has 256
random bits, so a fast hash without salt is enough: a dictionary attack is not possible.
"""

import fcntl
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from esrt.errors import NotReady, RequestError
from esrt.files import replace_file

_PREFIX = "esrt"
_VERSION = 1
# Hash for the comparison when the id is unknown: the response time must not reveal valid ids.
_NO_HASH = "0" * 64


class Scope(StrEnum):
    """Permission of a key."""

    TRANSLATE = "translate"
    METRICS = "metrics"


@dataclass(frozen=True)
class KeyEntry:
    """Entry of a key in the key file; the key cannot be computed from it.

    Attributes:
        id: the public part of the key.
        name: the owner of the key, as text for people.
        scope: the permission of the key.
        created: the time of creation, ISO 8601 in UTC.
        sha256: the hash of the whole key, in hexadecimal.
    """

    id: str
    name: str
    scope: Scope
    created: str
    sha256: str


def create(path: Path, name: str, scope: Scope) -> str:
    """Create a key and add its entry to the file; a missing file is created.

    Returns:
        The key. It is stored nowhere, so it cannot be shown again.

    Raises:
        RequestError: the file is damaged or cannot be written.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with _locked(path):
        entries = read(path) if path.exists() else ()
        existing_ids, key_id = {entry.id for entry in entries}, secrets.token_hex(4)
        while key_id in existing_ids:
            key_id = secrets.token_hex(4)
        key = f"{_PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
        _write(path, [*entries, KeyEntry(key_id, name, scope, created, _hash(key))])
    return key


def revoke(path: Path, key_id: str) -> KeyEntry:
    """Remove a key from the file; a running gateway rejects it from the next request on.

    Raises:
        RequestError: the file has no key with this id, is damaged or cannot be written.
    """
    with _locked(path):
        entries = read(path)
        for entry in entries:
            if entry.id == key_id:
                _write(path, [other for other in entries if other is not entry])
                return entry
    raise RequestError(
        f"The key file {path} has no key with the id {key_id}.",
        f"List the keys: python -m cloud_vllm keys list --key-file {path}",
    )


def read(path: Path) -> tuple[KeyEntry, ...]:
    """Read the entries of a key file.

    Raises:
        RequestError: the file is missing or damaged.
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
            f"Create it: python -m cloud_vllm keys create --key-file {path} --name NAME",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"The key file {path} is damaged.",
            "Restore the file, or delete it and create new keys: "
            f"python -m cloud_vllm keys create --key-file {path} --name NAME",
        ) from error


class KeyRing:
    """Keys that a gateway accepts: the entries of the key file, reread when the file changes.

    Raises:
        RequestError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = _file_version(path)
        self._entries = {entry.id: entry for entry in read(path)}

    def find(self, key: str) -> KeyEntry | None:
        """Return the entry of a key, or ``None`` if the key is not valid.

        Raises:
            NotReady: the file has become unreadable; every key is rejected until it is repaired.
        """
        self._refresh()
        entry = self._entries.get(public_id(key))
        expected = entry.sha256 if entry else _NO_HASH
        return entry if hmac.compare_digest(_hash(key), expected) else None

    def holds(self, entry: KeyEntry) -> bool:
        """Return whether a key that was valid earlier is still valid.

        Raises:
            NotReady: the file has become unreadable, as for `find`.
        """
        self._refresh()
        return self._entries.get(entry.id) == entry

    def _refresh(self) -> None:
        try:
            version = _file_version(self._path)
            if version != self._version:
                entries = {entry.id: entry for entry in read(self._path)}
                self._version, self._entries = version, entries
        except RequestError as error:
            raise NotReady(
                "API keys cannot be checked at the moment.",
                "Inform the operator, and try again later.",
            ) from error


def public_id(key: str) -> str:
    """Return the id of a key; empty if the text is no key."""
    prefix, _, rest = key.partition("_")
    return rest.partition("_")[0] if prefix == _PREFIX else ""


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _file_version(path: Path) -> tuple[int, int, int] | None:
    """Return inode, modification time and size of the file, or `None` if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _write(path: Path, entries: Sequence[KeyEntry]) -> None:
    """Replace the file in one step, readable by its owner only."""
    text = json.dumps({"version": _VERSION, "keys": [asdict(e) for e in entries]}, indent=2)
    try:
        with replace_file(path, mode=0o600) as partial:
            partial.write_text(text + "\n", "utf-8")
    except OSError as error:
        raise _not_writable(path, error) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock the key file, so that concurrent commands do not lose each other's keys.

    The lock is a separate file, because `_write` replaces the key file itself.
    """
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
        "Choose a file in an existing folder with write permission.",
    )
