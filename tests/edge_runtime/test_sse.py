"""Server-sent events, however the network cuts them."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.sse import MAX_EVENT_CHARACTERS, ServerSentEvent, parse_events

STREAM = (
    "\ufeffevent: transcript\ndata: {}\n\n: a comment\r\n\r\n"
    "data:first\ndata: second\ndata\nid: 7\nretry: 9\n\n"
    "event: translation\r\ndata:  schöne Grüße 日本 🙂\r\n\r\n"
    "event: nothing\n\nevent: done\rdata: x\r\rdata: cut off"
).encode()
EVENTS = [
    ServerSentEvent("transcript", "{}"),
    ServerSentEvent("message", "first\nsecond\n"),
    ServerSentEvent("translation", " schöne Grüße 日本 🙂"),
    ServerSentEvent("done", "x"),
]
pieces = st.sampled_from(
    [b"event: a", b"data: b", b"data:", b"\n", b"\r", b"\r\n", b":", b"\xef\xbb\xbf", b"\xf0\x9f"]
)
streams = st.one_of(st.just(STREAM), st.lists(pieces | st.binary(max_size=3)).map(b"".join))


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream and a way to cut it, empty chunks included."""
    stream = draw(streams)
    cuts = draw(st.lists(st.integers(0, len(stream))))
    return stream, [stream[a:b] for a, b in pairwise([0, *sorted(cuts), len(stream)])]


def test_the_standard() -> None:
    assert list(parse_events([STREAM])) == EVENTS


@given(cut_streams())
def test_cuts_do_not_matter(case: tuple[bytes, list[bytes]]) -> None:
    stream, chunks = case
    assert list(parse_events(chunks)) == list(parse_events([stream]))


def test_every_byte_alone() -> None:
    assert list(parse_events(STREAM[i : i + 1] for i in range(len(STREAM)))) == EVENTS


def test_an_event_comes_with_its_blank_line() -> None:
    taken = []

    def watched() -> Iterator[bytes]:
        for chunk in (b"data: 1\n", b"\n", b"data: 2\n\n"):
            taken.append(chunk)
            yield chunk

    events = parse_events(watched())
    assert next(events).data == "1"
    assert len(taken) == 2
    assert next(events).data == "2"
    assert len(taken) == 3


@pytest.mark.parametrize("line", [b"data: " + b"x" * 1000, b"data: " + b"x" * 1000 + b"\n"])
def test_a_stream_without_end_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="longer than"):
        list(parse_events(line for _ in range(2 * MAX_EVENT_CHARACTERS // 1000)))
