"""Split sentences into training, validation and test, without overlap."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from random import Random

from training.corpus.domain import Domain
from training.corpus.text import Sentence, phrasebook, sentences

# Every word of a held-out sentence occurs in at least this many distinct training sentences.
_MIN_OCCURRENCES = 3
# Words that occur less often in training get more training sentences, from this many extra draws.
_RARE_BELOW = 20
_EXTRA_DRAWS = 20_000

# Scripts without spaces, and Hangul, whose particles attach to words: each character is a word.
_CHARACTER_WORDS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
)


def draw_splits(
    domain: Domain, seed: int, held_out: dict[str, int], train: int
) -> dict[str, list[Sentence]]:
    """Draw the sentences of each split.

    Held-out sentences are new combinations of known words. No text of a held-out sentence occurs
    in another split, in any language. Each of its words occurs in several training sentences.
    Held-out sentences are drawn first, so that templates with few fillings take part; sentences
    with a word that training lacks are replaced. Phrases without slots are too few to hold out and
    belong to training only.

    Further training sentences contain words that are rare so far, such as the name of an ailment
    that fits few templates. These sentences may repeat earlier ones; other voices speak them.

    Args:
        domain: what the sentences are about.
        seed: seed of the draws.
        held_out: number of sentences of each held-out split.
        train: number of training sentences before those for rare words.
    """
    stream = sentences(domain, Random(seed))
    phrases = phrasebook("eng", domain.books)["phrases"].values()
    fixed = {phrase for phrase in phrases if "{" not in phrase}
    seen: set[tuple[str, str]] = set()

    def draw(without: set[str]) -> Iterator[Sentence]:
        for sentence in stream:
            keys = set(sentence.texts.items())
            if not keys & seen and sentence.texts["eng"] not in without:
                seen.update(keys)
                yield sentence

    reserved = {name: list(islice(draw(fixed), count)) for name, count in held_out.items()}
    training = list(islice(draw(set()), train))
    counts = Counter(word for sentence in training for word in _words(sentence))
    reserved_keys = {
        key for group in reserved.values() for sentence in group for key in sentence.texts.items()
    }
    for sentence in islice(stream, _EXTRA_DRAWS):
        keys, words = set(sentence.texts.items()), _words(sentence)
        if not keys & reserved_keys and min(counts[word] for word in words) < _RARE_BELOW:
            training.append(sentence)
            counts.update(words)
            seen.update(keys)
    distinct = {sentence.texts["eng"]: sentence for sentence in training}.values()
    occurrences = Counter(word for sentence in distinct for word in _words(sentence))

    def known(sentence: Sentence) -> bool:
        return all(occurrences[word] >= _MIN_OCCURRENCES for word in _words(sentence))

    return {
        name: list(islice(filter(known, chain(reserved[name], draw(fixed))), count))
        for name, count in held_out.items()
    } | {"train": training}


def _words(sentence: Sentence) -> set[tuple[str, str]]:
    """Words in every language, as (language, word), without numbers."""
    return {
        (code, word)
        for code, text in sentence.texts.items()
        for word in "".join(map(_separate, text)).split()
    }


def _separate(character: str) -> str:
    """Put spaces around a character that is a word; replace anything but letters by a space."""
    if unicodedata.category(character)[0] not in "LM":
        return " "
    return f" {character} " if _CHARACTER_WORDS.match(character) else character
