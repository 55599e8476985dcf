"""Domains: what the sentences of a corpus are about, and in which languages."""

from dataclasses import dataclass

from training.corpus.synthesis_languages import SYNTHESIS_LANGUAGES


@dataclass(frozen=True)
class Domain:
    """Languages, phrasebooks and numbers of a corpus.

    Attributes:
        languages: ISO 639-3 codes, keys of `SYNTHESIS_LANGUAGES`.
        books: phrasebooks, folders in ``phrasebook/``. A later book may use the slots of an
            earlier one.
        counts: numbers of amounts, durations and temperatures. They begin with 3, because 1 and 2
            have special word forms.
        kinds: weight of each kind of sentence (`training.corpus.text`).
    """

    languages: tuple[str, ...]
    books: tuple[str, ...]
    counts: tuple[int, ...]
    kinds: tuple[tuple[str, float], ...]


# Few numbers, so that each occurs often.
NANO = Domain(
    languages=tuple("eng deu spa fra rus hin ara tur fin kor ind cmn".split()),
    books=("travel",),
    counts=(*range(3, 21), *range(30, 100, 10)),
    kinds=(
        ("phrase", 0.7),
        ("places", 0.08),
        ("measures", 0.08),
        ("money", 0.05),
        ("moment", 0.03),
        ("date", 0.06),
    ),
)
MINI = Domain(
    languages=tuple(SYNTHESIS_LANGUAGES),
    books=("travel", "everyday"),
    counts=tuple(range(3, 100)),
    kinds=(
        ("phrase", 0.76),
        ("places", 0.04),
        ("measures", 0.06),
        ("money", 0.05),
        ("moment", 0.05),
        ("date", 0.04),
    ),
)
DOMAINS = {"esrt-nano": NANO, "esrt-mini": MINI}
