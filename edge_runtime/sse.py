"""Server-sent events (WHATWG HTML, section 9.2.6) out of a response's bytes."""

import codecs
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Far beyond any translation of one packet; a server that never ends a line meets it.
MAX_EVENT_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class ServerSentEvent:
    """One event: its type, ``message`` where the server names none, and its data."""

    event: str
    data: str


def parse_events(chunks: Iterable[bytes]) -> Iterator[ServerSentEvent]:
    """Events, each as soon as its blank line has arrived, however the bytes are cut.

    ``id`` and ``retry`` serve reconnecting, which a translation cannot do, and are passed over.
    An event that the stream's end cuts off is dropped, as the standard says.

    Raises:
        ValueError: an event is longer than `MAX_EVENT_CHARACTERS`.
    """
    name, data, size = "", list[str](), 0
    for line in _lines(chunks):
        if not line:
            if data:
                yield ServerSentEvent(name or "message", "\n".join(data))
            name, data, size = "", [], 0
            continue
        size += len(line)
        _check_length(size)
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines, ended by LF, CR or CRLF, without their ends; a byte order mark is skipped."""
    utf8 = codecs.getincrementaldecoder("utf-8-sig")("replace")
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    pending = ""
    for chunk in chunks:
        *lines, pending = (pending + decoder.decode(chunk)).split("\n")
        yield from lines
        _check_length(len(pending))
    *lines, _ = (pending + decoder.decode(b"", final=True)).split("\n")
    yield from lines


def _check_length(size: int) -> None:
    if size > MAX_EVENT_CHARACTERS:
        raise ValueError(f"an event is longer than {MAX_EVENT_CHARACTERS} characters")
