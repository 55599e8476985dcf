"""Parallel sentences: a phrasebook with slots, and lists, dates, times, units, money from CLDR."""

import datetime
import re
import tomllib
import unicodedata
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

from training.corpus.synthesis_languages import SYNTHESIS_LANGUAGES

# A curated few of everything, so that each name is heard often enough to be learned.
_COUNTRIES = (
    "AR AU AT BR CA CN CU EG FI FR DE GR IN ID IE IT JP KE MX NL NO PE PL PT RU ES SE TH TR US VN "
    "ZA"
).split()
# Time zones whose exemplar city CLDR names in every locale; where it does not, the English name.
_CITIES = (
    "Europe/Amsterdam Europe/Athens Europe/Berlin Europe/Brussels Europe/Budapest Europe/Dublin "
    "Europe/Helsinki Europe/Istanbul Europe/Lisbon Europe/London Europe/Madrid Europe/Moscow "
    "Europe/Oslo Europe/Paris Europe/Prague Europe/Rome Europe/Stockholm Europe/Vienna "
    "Europe/Warsaw Asia/Bangkok Asia/Jakarta Asia/Seoul Asia/Tokyo America/Lima "
    "America/New_York America/Toronto Australia/Sydney"
).split()
_SPOKEN_LANGUAGES = "ar zh nl en fi fr de el hi id it ja ko pl pt ru es tr".split()
_UNITS = (
    "length-kilometer length-meter mass-kilogram mass-gram volume-liter duration-year "
    "duration-month duration-week duration-day duration-hour duration-minute temperature-celsius"
).split()
_CURRENCIES = "EUR USD GBP JPY CHF CNY".split()

# Few numbers, so that each is heard often; from 3 on, because 1 and 2 have forms of their own.
_COUNTS = (*range(3, 21), *range(30, 100, 10))
_QUARTERS = (15, 30, 45)
_YEARS = range(2020, 2030)

# In how many distinct training sentences a word must occur to be asked for in a held-out one.
_KNOWN = 3
# Training goes on with sentences that hold a word met less often, among so many more drawn.
_OFTEN = 20
_MORE = 20_000

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
    """The text in every language, with plain spaces and without directional marks."""
    texts = {
        code: make(Locale.parse(spoken.locale)) for code, spoken in SYNTHESIS_LANGUAGES.items()
    }
    return {
        code: " ".join(text.replace("’", "'").replace("\u200f", "").split())
        for code, text in texts.items()
    }


def _unit(number: int, unit: str) -> Callable[[Locale], str]:
    """The number with its unit, in short where CLDR has no long form and babel names the unit."""

    def text(locale: Locale) -> str:
        long = format_unit(number, unit, "long", locale=locale)
        return str(format_unit(number, unit, "short", locale=locale) if unit in long else long)

    return text


def _city(random: Random) -> dict[str, Texts]:
    zone = random.choice(_CITIES)
    default = zone.split("/")[-1].replace("_", " ")
    names = _in_all(lambda locale: locale.time_zones.get(zone, {}).get("city") or default)
    return {"city": names}


def _day(random: Random) -> dict[str, Texts]:
    day = random.randrange(7)
    return {"day": _in_all(lambda locale: _weekday(locale, day))}


def _weekday(locale: Locale, day: int) -> str:
    return str(locale.days["format"]["wide"][day])


def _time(random: Random) -> dict[str, Texts]:
    time = _draw_time(random)
    return {"time": _in_all(lambda locale: str(format_skeleton("Hm", time, locale=locale)))}


def _draw_time(random: Random) -> datetime.time:
    return datetime.time(random.randrange(5, 24), random.choice(_QUARTERS))


def _language(random: Random) -> dict[str, Texts]:
    code = random.choice(_SPOKEN_LANGUAGES)
    return {"language": _in_all(lambda locale: str(locale.languages[code]))}


def _count(random: Random) -> dict[str, Texts]:
    count = random.choice(_COUNTS)
    return {"count": _in_all(lambda locale: str(count))}


def _temperature(random: Random) -> dict[str, Texts]:
    return {"temperature": _in_all(_unit(random.choice(_COUNTS), "temperature-celsius"))}


def _duration(slot: str, unit: str) -> Callable[[Random], dict[str, Texts]]:
    """A span of time as a slot, and its bare number for phrases that need another case."""

    def draw(random: Random) -> dict[str, Texts]:
        count = random.choice(_COUNTS)
        return {slot: _in_all(_unit(count, unit)), "count": _in_all(lambda locale: str(count))}

    return draw


def _euros(random: Random) -> dict[str, Texts]:
    count = random.choice(_COUNTS)
    return {
        "euros": _in_all(_amount(count, "EUR")),
        "count": _in_all(lambda locale: str(count)),
    }


def _amount(amount: int, currency: str) -> Callable[[Locale], str]:
    return lambda locale: format_currency(
        amount, currency, format="#", locale=locale, currency_digits=False, format_type="name"
    )


# What the slot of an English phrase draws: its own text, and sometimes the bare number beside it.
_SLOTS: dict[str, Callable[[Random], dict[str, Texts]]] = {
    "city": _city,
    "count": _count,
    "day": _day,
    "days": _duration("days", "duration-day"),
    "euros": _euros,
    "hours": _duration("hours", "duration-hour"),
    "language": _language,
    "minutes": _duration("minutes", "duration-minute"),
    "temperature": _temperature,
    "time": _time,
    "years": _duration("years", "duration-year"),
}


def _slot(name: str, random: Random) -> dict[str, Texts]:
    if name in _SLOTS:
        return _SLOTS[name](random)
    word = random.choice(sorted(phrasebook("eng")[name]))
    return {name: {code: phrasebook(code)[name][word] for code in SYNTHESIS_LANGUAGES}}


def _phrase(random: Random) -> Texts:
    key = random.choice(sorted(phrasebook("eng")["phrases"]))
    words: dict[str, Texts] = {}
    for name in re.findall(r"{(\w+)}", phrasebook("eng")["phrases"][key]):
        words |= _slot(name, random)
    texts = {}
    for code in SYNTHESIS_LANGUAGES:
        filling = {name: texts_of[code] for name, texts_of in words.items()}
        text = phrasebook(code)["phrases"][key].format_map(filling)
        texts[code] = text[0].upper() + text[1:]
    return texts


def _places(random: Random) -> Texts:
    codes = random.sample(_COUNTRIES, random.choice((2, 2, 3)))
    return _in_all(
        lambda locale: format_list([str(locale.territories[code]) for code in codes], locale=locale)
    )


def _measures(random: Random) -> Texts:
    measures = [
        _unit(random.choice(_COUNTS), unit) for unit in random.sample(_UNITS, random.choice((1, 2)))
    ]
    return _in_all(
        lambda locale: format_list([measure(locale) for measure in measures], locale=locale)
    )


def _money(random: Random) -> Texts:
    amount = random.choice(_COUNTS) * random.choice((1, 100))
    return _in_all(_amount(amount, random.choice(_CURRENCIES)))


def _moment(random: Random) -> Texts:
    day, time = random.randrange(7), _draw_time(random)
    return _in_all(
        lambda locale: str(locale.datetime_formats["medium"]).format(
            format_skeleton("Hm", time, locale=locale), _weekday(locale, day)
        )
    )


def _date(random: Random) -> Texts:
    day = datetime.date(random.choice(_YEARS), 1, 1) + datetime.timedelta(random.randrange(365))
    full = random.random() < 0.5
    return _in_all(
        lambda locale: (
            format_date(day, "full", locale)
            if full
            else str(format_skeleton("MMMMd", day, locale=locale))
        )
    )


_KINDS: dict[str, tuple[Callable[[Random], Texts], float]] = {
    "phrase": (_phrase, 0.7),
    "places": (_places, 0.08),
    "measures": (_measures, 0.08),
    "money": (_money, 0.05),
    "moment": (_moment, 0.03),
    "date": (_date, 0.06),
}


def sentences(random: Random) -> Iterator[Sentence]:
    """Sentences without end, drawn by the kinds' weights; they may repeat."""
    names = list(_KINDS)
    weights = [weight for _, weight in _KINDS.values()]
    while True:
        kind = random.choices(names, weights)[0]
        yield Sentence(kind, _KINDS[kind][0](random))


def split(seed: int, held_out: dict[str, int], train: int) -> dict[str, list[Sentence]]:
    """Sentences for each split, ``train`` being the number of training sentences drawn freely.

    To these come sentences for the words that are still rare, such as the name of an ailment that
    only a few templates can hold; they may repeat earlier ones, for other voices to say.

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
    held = {key for group in reserved.values() for each in group for key in each.texts.items()}
    for sentence in islice(stream, _MORE):
        keys, words = set(sentence.texts.items()), _words(sentence)
        if not keys & held and min(counts[word] for word in words) < _OFTEN:
            training.append(sentence)
            counts.update(words)
            seen.update(keys)
    distinct = {sentence.texts["eng"]: sentence for sentence in training}.values()
    sources = Counter(word for sentence in distinct for word in _words(sentence))

    def known(sentence: Sentence) -> bool:
        return all(sources[word] >= _KNOWN for word in _words(sentence))

    return {
        name: list(islice(filter(known, chain(reserved[name], draw(fixed))), count))
        for name, count in held_out.items()
    } | {"train": training}


# Scripts without spaces between words, and Hangul, whose particles cling: characters are words.
_ALONE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
)


def _words(sentence: Sentence) -> set[tuple[str, str]]:
    """The words in every language, as (language, word); numbers do not count, digits compose."""
    return {
        (code, word)
        for code, text in sentence.texts.items()
        for word in "".join(map(_spread, text)).split()
    }


def _spread(character: str) -> str:
    """The character, a space in the place of what is neither letter nor mark of one."""
    if unicodedata.category(character)[0] not in "LM":
        return " "
    return f" {character} " if _ALONE.match(character) else character
