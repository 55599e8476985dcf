"""Tokenizer of nano: lossless, with one token for each tag."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from esrt.languages import LANGUAGES, direction
from esrt.prompt import separator, target_text
from training.corpus.text import Sentence

many = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
texts = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(
            ["<|eng|>", "<|deu|>", "<|", "|>", " ", "  ", "12", "é", "😀", "新", "n't", ","]
        ),
        max_size=12,
    ).map("".join),
)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


@many
@given(texts)
def test_no_character_is_lost(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(ids_of(tokenizer, text), skip_special_tokens=False) == text


@many
@given(texts, texts)
def test_target_texts_come_back(
    tokenizer: PreTrainedTokenizerFast, transcript: str, translation: str
) -> None:
    pair = direction("spa", "fra")
    text = target_text(transcript, translation, *pair)
    ids = ids_of(tokenizer, text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    # The parts are tokenized independently of their neighbours.
    parts = (transcript, separator(*pair), translation)
    assert ids == [token for part in parts for token in ids_of(tokenizer, part)]


def test_every_tag_is_one_token_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    found = [ids_of(tokenizer, language.tag) for language in LANGUAGES.values()]
    assert {len(ids) for ids in found} == {1}
    assert len({ids[0] for ids in found}) == 45


def test_separators_of_all_directions_have_one_length(tokenizer: PreTrainedTokenizerFast) -> None:
    """Batched decoding relies on equal lengths."""
    lengths = {
        len(ids_of(tokenizer, a.tag + b.tag))
        for a in LANGUAGES.values()
        for b in LANGUAGES.values()
    }
    assert lengths == {2}


@pytest.mark.parametrize("number", ["7", "42", "1234", "2026"])
def test_digits_are_tokens_of_their_own(tokenizer: PreTrainedTokenizerFast, number: str) -> None:
    assert ids_of(tokenizer, number) == [ids_of(tokenizer, digit)[0] for digit in number]


def test_vocabulary_is_bounded_and_used(
    tokenizer: PreTrainedTokenizerFast, splits: dict[str, list[Sentence]]
) -> None:
    assert len(tokenizer) == 900
    assert {tokenizer.pad_token_id, tokenizer.eos_token_id} == {0, 1}
    held_out = [text for sentence in splits["test"] for text in sentence.texts.values()]
    letters = sum(len(text) for text in held_out)
    assert sum(len(ids_of(tokenizer, text)) for text in held_out) < letters / 1.3


def test_survives_saving(
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    again = AutoTokenizer.from_pretrained(folder)
    text = "  21 kilómetros<|spa|><|deu|>21 Kilometer, n'est-ce pas ? 😀"
    assert ids_of(again, text) == ids_of(tokenizer, text)
    assert again.decode(ids_of(again, text), skip_special_tokens=False) == text
    assert (again.eos_token_id, again.pad_token_id) == (1, 0)
