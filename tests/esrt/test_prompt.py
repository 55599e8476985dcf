"""The splitter of a decoder's text: independent of the pieces, and never a partial tag."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esrt.languages import direction
from esrt.prompt import TargetSplitter, TextDelta, separator, target_text

PAIR = direction("eng", "deu")
SEPARATOR = separator(*PAIR)
many = settings(max_examples=400, deadline=None)

# Text that often is a tag, resembles a tag, or is cut inside a tag.
pieces = st.sampled_from(
    ["<", "|", ">", "<|", "|>", "<|eng", "<|eng|>", "<|deu|>", "<|fra|>", "a", " ", "ß", "新", "😀"]
)
texts = st.one_of(st.lists(pieces, max_size=12).map("".join), st.text(max_size=20))
transcripts = texts.filter(lambda text: SEPARATOR not in text)


@st.composite
def chunked(draw: st.DrawFn, whole: st.SearchStrategy[str]) -> list[str]:
    """Text cut at arbitrary places, with some empty pieces."""
    text = draw(whole)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def split(chunks: list[str]) -> tuple[TargetSplitter, list[TextDelta]]:
    splitter = TargetSplitter(*PAIR)
    deltas = [delta for chunk in chunks for delta in splitter.feed(chunk)]
    return splitter, deltas + list(splitter.finish())


def test_the_separator_is_the_two_tags() -> None:
    assert separator(*direction("yue", "nob")) == "<|yue|><|nob|>"
    assert target_text("hello", "hallo", *PAIR) == "hello<|eng|><|deu|>hallo"


@many
@given(transcripts, texts, st.data())
def test_any_chunking_gives_the_parts_of_the_whole(
    transcript: str, translation: str, data: st.DataObject
) -> None:
    whole = target_text(transcript, translation, *PAIR)
    splitter, deltas = split(data.draw(chunked(st.just(whole))))
    assert (splitter.transcript, splitter.translation) == (transcript, translation)
    assert splitter.separated
    assert "".join(d.text for d in deltas if d.part == "transcript") == transcript
    assert "".join(d.text for d in deltas if d.part == "translation") == translation
    assert all(delta.text for delta in deltas)
    parts = [delta.part for delta in deltas]
    assert parts == sorted(parts)  # "transcript" comes before "translation"


@many
@given(transcripts, st.data())
def test_no_fragment_of_the_separator_is_shown(transcript: str, data: st.DataObject) -> None:
    splitter = TargetSplitter(*PAIR)
    for chunk in data.draw(chunked(st.just(target_text(transcript, "x", *PAIR)))):
        for _ in splitter.feed(chunk):
            assert transcript.startswith(splitter.transcript)


@many
@given(chunked(transcripts))
def test_without_a_separator_everything_is_transcript(chunks: list[str]) -> None:
    splitter, _ = split(chunks)
    assert splitter.transcript == "".join(chunks)
    assert splitter.translation == ""
    assert not splitter.separated


@many
@given(chunked(transcripts))
def test_only_a_possible_separator_is_held_back(chunks: list[str]) -> None:
    splitter, fed = TargetSplitter(*PAIR), ""
    for chunk in chunks:
        fed += chunk
        list(splitter.feed(chunk))
        held = fed.removeprefix(splitter.transcript)
        assert SEPARATOR.startswith(held)
        assert held != SEPARATOR


@pytest.mark.parametrize("end", range(1, len(SEPARATOR)))
def test_a_separator_that_breaks_off_is_shown_at_the_end(end: int) -> None:
    splitter = TargetSplitter(*PAIR)
    assert [delta.text for delta in splitter.feed("hello" + SEPARATOR[:end])] == ["hello"]
    assert list(splitter.finish()) == [TextDelta("transcript", SEPARATOR[:end])]
    assert list(splitter.finish()) == []


def test_only_the_first_separator_separates() -> None:
    splitter, _ = split(["a", SEPARATOR, "b", SEPARATOR, "c"])
    assert (splitter.transcript, splitter.translation) == ("a", f"b{SEPARATOR}c")


def test_another_direction_does_not_separate() -> None:
    splitter, _ = split(["hallo<|deu|><|eng|>hello"])
    assert not splitter.separated
