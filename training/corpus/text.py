"""Parallel sentences: a phrasebook with slots, and lists, dates, units and money from CLDR.

To add a language: one entry in ``LOCALES`` and one file in ``phrasebook/``.
"""

import datetime
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from random import Random

from babel import Locale
from babel.dates import format_date, format_skeleton
from babel.lists import format_list
from babel.numbers import format_currency
from babel.units import format_unit

LOCALES = {"eng": "en", "deu": "de", "spa": "es", "fra": "fr"}

# A curated few, so that every name is heard often enough to be learned.
_COUNTRIES = (
    "AR AU AT BE BR CA CL CN CO CU CZ DK EG FI FR DE GR HU IS IN ID IE IL IT JP KE KR MX MA NL "
    "NZ NG NO PE PH PL PT RO RU SA SN ZA ES SE CH TH TN TR UA GB US UY VE VN"
).split()
# Time zones whose exemplar city CLDR names in every locale above.
_CITIES = (
    "Europe/Amsterdam Europe/Athens Europe/Berlin Europe/Brussels Europe/Bucharest "
    "Europe/Budapest Europe/Copenhagen Europe/Dublin Europe/Helsinki Europe/Istanbul "
    "Europe/Lisbon Europe/London Europe/Luxembourg Europe/Madrid Europe/Moscow Europe/Oslo "
    "Europe/Paris Europe/Prague Europe/Rome Europe/Sofia Europe/Stockholm Europe/Vienna "
    "Europe/Warsaw Europe/Zurich Asia/Baghdad Asia/Bangkok Asia/Beirut Asia/Damascus Asia/Dubai "
    "Asia/Jakarta Asia/Jerusalem Asia/Seoul Asia/Shanghai Asia/Singapore Asia/Tokyo "
    "Africa/Algiers Africa/Nairobi Africa/Tunis America/Bogota America/Chicago America/Lima "
    "America/Mexico_City America/New_York America/Toronto Australia/Sydney"
).split()
_SPOKEN_LANGUAGES = "ar zh da nl en fi fr de el hi hu it ja ko no pl pt ru es sv th tr vi".split()
_UNITS = (
    "length-kilometer length-meter length-centimeter mass-kilogram mass-gram volume-liter "
    "duration-year duration-month duration-week duration-day duration-hour duration-minute "
    "duration-second temperature-celsius speed-kilometer-per-hour"
).split()
_CURRENCIES = "EUR USD GBP JPY CHF CNY".split()

# In how many training sentences a word must occur to be asked for in a held-out one.
_KNOWN = 3

Texts = dict[str, str]


@dataclass(frozen=True)
class Sentence:
    """One sentence in every language; ``kind`` is the generator that made it."""

    kind: str
    texts: Texts


@lru_cache
def phrasebook(code: str) -> dict[str, dict[str, str]]:
    """A language's phrases and the words for their slots."""
    path = Path(__file__).parent / "phrasebook" / f"{code}.toml"
    return tomllib.loads(path.read_text("utf-8"))


def _in_all(make: Callable[[Locale], str]) -> Texts:
    """The text in every language, with plain spaces."""
    texts = {code: make(Locale.parse(name)) for code, name in LOCALES.items()}
    return {code: " ".join(text.replace("’", "'").split()) for code, text in texts.items()}


def _city(random: Random) -> Texts:
    zone = random.choice(_CITIES)
    default = zone.split("/")[-1].replace("_", " ")
    return _in_all(lambda locale: locale.time_zones.get(zone, {}).get("city") or default)


def _day(random: Random) -> Texts:
    day = random.randrange(7)
    return _in_all(lambda locale: str(locale.days["format"]["wide"][day]))


def _time(random: Random) -> Texts:
    time = datetime.time(random.randrange(2, 24), random.randrange(0, 60, 5))
    return _in_all(lambda locale: str(format_skeleton("Hm", time, locale=locale)))


def _language(random: Random) -> Texts:
    code = random.choice(_SPOKEN_LANGUAGES)
    return _in_all(lambda locale: str(locale.languages[code]))


def _count(random: Random) -> Texts:
    count = random.randrange(2, 100)
    return _in_all(lambda locale: str(count))


def _temperature(random: Random) -> Texts:
    degrees = random.randrange(2, 45)
    return _in_all(lambda locale: format_unit(degrees, "temperature-celsius", locale=locale))


_SLOTS: dict[str, Callable[[Random], Texts]] = {
    "city": _city,
    "count": _count,
    "day": _day,
    "language": _language,
    "temperature": _temperature,
    "time": _time,
}


def _slot(name: str, random: Random) -> Texts:
    if name in _SLOTS:
        return _SLOTS[name](random)
    word = random.choice(sorted(phrasebook("eng")[name]))
    return {code: phrasebook(code)[name][word] for code in LOCALES}


def _phrase(random: Random) -> Texts:
    key = random.choice(sorted(phrasebook("eng")["phrases"]))
    texts = {code: phrasebook(code)["phrases"][key] for code in LOCALES}
    for name in [*_SLOTS, *phrasebook("eng")]:
        slot = "{" + name + "}"
        if slot in texts["eng"]:
            words = _slot(name, random)
            texts = {code: text.replace(slot, words[code]) for code, text in texts.items()}
    return texts


def _places(random: Random) -> Texts:
    codes = random.sample(_COUNTRIES, random.choice((2, 2, 3)))
    return _in_all(
        lambda locale: format_list([str(locale.territories[code]) for code in codes], locale=locale)
    )


def _measures(random: Random) -> Texts:
    measures = [
        (random.randrange(2, 100), unit) for unit in random.sample(_UNITS, random.choice((1, 2)))
    ]
    return _in_all(
        lambda locale: format_list(
            [format_unit(number, unit, locale=locale) for number, unit in measures], locale=locale
        )
    )


def _money(random: Random) -> Texts:
    amount, currency = random.randrange(2, 1000), random.choice(_CURRENCIES)
    return _in_all(
        lambda locale: format_currency(
            amount,
            currency,
            format="#",
            locale=locale,
            currency_digits=False,
            format_type="name",
        )
    )


def _date(random: Random) -> Texts:
    day = datetime.date(2000, 1, 1) + datetime.timedelta(random.randrange(365 * 30))
    full = random.random() < 0.5
    return _in_all(
        lambda locale: (
            format_date(day, "full", locale)
            if full
            else str(format_skeleton("MMMMd", day, locale=locale))
        )
    )


_KINDS: dict[str, tuple[Callable[[Random], Texts], float]] = {
    "phrase": (_phrase, 0.65),
    "places": (_places, 0.1),
    "measures": (_measures, 0.1),
    "money": (_money, 0.05),
    "date": (_date, 0.1),
}


def sentences(random: Random) -> Iterator[Sentence]:
    """Sentences without end, drawn by the kinds' weights; they may repeat."""
    names = list(_KINDS)
    weights = [weight for _, weight in _KINDS.values()]
    while True:
        kind = random.choices(names, weights)[0]
        yield Sentence(kind, _KINDS[kind][0](random))


def split(seed: int, held_out: dict[str, int], train: int) -> dict[str, list[Sentence]]:
    """Distinct sentences for each split.

    Held-out sentences are new combinations of known words: no text of one occurs in another split,
    in any language, but each of its words does, in several training sentences. They are set aside
    before training sentences are drawn, so that templates with few fillings take part; those with
    a word that training then lacks are dropped and replaced. Phrases without slots, of which there
    are too few to hold out, are for training alone.
    """
    stream = sentences(Random(seed))
    fixed = {phrase for phrase in phrasebook("eng")["phrases"].values() if "{" not in phrase}
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

    def known(sentence: Sentence) -> bool:
        return all(counts[word] >= _KNOWN for word in _words(sentence))

    return {
        name: list(islice(filter(known, chain(reserved[name], draw(fixed))), count))
        for name, count in held_out.items()
    } | {"train": training}


def _words(sentence: Sentence) -> set[tuple[str, str]]:
    """The words in every language, as (language, word); numbers do not count, digits compose."""
    return {
        (code, word)
        for code, text in sentence.texts.items()
        for word in re.findall(r"[^\W\d_]+", text)
    }
