"""Parallel sentences from phrasebooks with slots, and from CLDR: lists, dates, units, money."""

import datetime
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from babel import Locale
from babel.dates import format_date, format_skeleton
from babel.lists import format_list
from babel.numbers import format_currency
from babel.units import format_unit

from training.corpus.domain import Domain
from training.corpus.synthesis_languages import SYNTHESIS_LANGUAGES

# Few names of each kind, so that each occurs often enough to be learned.
_COUNTRIES = (
    "AR AU AT BR CA CN CU EG FI FR DE GR IN ID IE IT JP KE MX NL NO PE PL PT RU ES SE TH TR US VN "
    "ZA"
).split()
# Time zones of cities that CLDR names in every locale. Otherwise the English name is used.
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

_QUARTERS = (15, 30, 45)
_YEARS = range(2020, 2030)

# Texts of a sentence by language.
Texts = dict[str, str]


@dataclass(frozen=True)
class Sentence:
    """A sentence in every language.

    Attributes:
        kind: name of its generator.
        texts: text by language.
    """

    kind: str
    texts: Texts


@lru_cache
def phrasebook(code: str, books: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Read a language's phrases and the words for their slots, of several books together."""
    whole: dict[str, dict[str, str]] = {}
    for book in books:
        path = Path(__file__).parent / "phrasebook" / book / f"{code}.toml"
        for table, entries in tomllib.loads(path.read_text("utf-8")).items():
            whole[table] = whole.get(table, {}) | entries
    return whole


def _in_all_languages(domain: Domain, make: Callable[[Locale], str]) -> Texts:
    """Make a text in every language, with plain spaces and without directional marks."""
    texts = {
        code: make(Locale.parse(SYNTHESIS_LANGUAGES[code].locale)) for code in domain.languages
    }
    return {
        code: " ".join(text.replace("’", "'").replace("\u200f", "").split())
        for code, text in texts.items()
    }


def _number(domain: Domain, count: int) -> Texts:
    return dict.fromkeys(domain.languages, str(count))


def _unit(number: int, unit: str) -> Callable[[Locale], str]:
    """Format a number with its unit; short if CLDR lacks the long form."""

    def text(locale: Locale) -> str:
        long = format_unit(number, unit, "long", locale=locale)
        # babel then returns the identifier of the unit
        return str(format_unit(number, unit, "short", locale=locale) if unit in long else long)

    return text


def _city(domain: Domain, random: Random) -> dict[str, Texts]:
    zone = random.choice(_CITIES)
    default = zone.split("/")[-1].replace("_", " ")
    names = _in_all_languages(
        domain, lambda locale: locale.time_zones.get(zone, {}).get("city") or default
    )
    return {"city": names}


def _day(domain: Domain, random: Random) -> dict[str, Texts]:
    day = random.randrange(7)
    return {"day": _in_all_languages(domain, lambda locale: _weekday(locale, day))}


def _lone_day(domain: Domain, random: Random) -> dict[str, Texts]:
    """Fill a slot with a weekday in its basic form, which differs in Finnish."""
    day = random.randrange(7)
    return {
        "weekday": _in_all_languages(
            domain, lambda locale: str(locale.days["stand-alone"]["wide"][day])
        )
    }


def _weekday(locale: Locale, day: int) -> str:
    return str(locale.days["format"]["wide"][day])


def _time(domain: Domain, random: Random) -> dict[str, Texts]:
    time = _draw_time(random)
    return {
        "time": _in_all_languages(
            domain, lambda locale: str(format_skeleton("Hm", time, locale=locale))
        )
    }


def _draw_time(random: Random) -> datetime.time:
    return datetime.time(random.randrange(5, 24), random.choice(_QUARTERS))


def _language(domain: Domain, random: Random) -> dict[str, Texts]:
    code = random.choice(_SPOKEN_LANGUAGES)
    return {"language": _in_all_languages(domain, lambda locale: str(locale.languages[code]))}


def _count(domain: Domain, random: Random) -> dict[str, Texts]:
    count = random.choice(domain.counts)
    return {"count": _number(domain, count)}


def _temperature(domain: Domain, random: Random) -> dict[str, Texts]:
    return {
        "temperature": _in_all_languages(
            domain, _unit(random.choice(domain.counts), "temperature-celsius")
        )
    }


def _duration(slot: str, unit: str) -> Callable[[Domain, Random], dict[str, Texts]]:
    """Fill a slot with a duration, and offer its number to phrases that need another case."""

    def draw(domain: Domain, random: Random) -> dict[str, Texts]:
        count = random.choice(domain.counts)
        return {
            slot: _in_all_languages(domain, _unit(count, unit)),
            "count": _number(domain, count),
        }

    return draw


def _euros(domain: Domain, random: Random) -> dict[str, Texts]:
    count = random.choice(domain.counts)
    return {
        "euros": _in_all_languages(domain, _amount(count, "EUR")),
        "count": _number(domain, count),
    }


def _amount(amount: int, currency: str) -> Callable[[Locale], str]:
    return lambda locale: format_currency(
        amount, currency, format="#", locale=locale, currency_digits=False, format_type="name"
    )


# Generator of each slot of an English phrase: the slot's texts, and for some the number alone.
_SLOTS: dict[str, Callable[[Domain, Random], dict[str, Texts]]] = {
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
    "weekday": _lone_day,
    "years": _duration("years", "duration-year"),
}


def _slot(name: str, domain: Domain, random: Random) -> dict[str, Texts]:
    if name in _SLOTS:
        return _SLOTS[name](domain, random)
    word = random.choice(sorted(phrasebook("eng", domain.books)[name]))
    return {name: {code: phrasebook(code, domain.books)[name][word] for code in domain.languages}}


def _phrase(domain: Domain, random: Random) -> Texts:
    english = phrasebook("eng", domain.books)["phrases"]
    key = random.choice(sorted(english))
    words: dict[str, Texts] = {}
    for name in re.findall(r"{(\w+)}", english[key]):
        words |= _slot(name, domain, random)
    texts = {}
    for code in domain.languages:
        filling = {name: texts_of[code] for name, texts_of in words.items()}
        text = phrasebook(code, domain.books)["phrases"][key].format_map(filling)
        texts[code] = text[0].upper() + text[1:]
    return texts


def _places(domain: Domain, random: Random) -> Texts:
    codes = random.sample(_COUNTRIES, random.choice((2, 2, 3)))
    return _in_all_languages(
        domain,
        lambda locale: format_list(
            [str(locale.territories[code]) for code in codes], locale=locale
        ),
    )


def _measures(domain: Domain, random: Random) -> Texts:
    measures = [
        _unit(random.choice(domain.counts), unit)
        for unit in random.sample(_UNITS, random.choice((1, 2)))
    ]
    return _in_all_languages(
        domain, lambda locale: format_list([measure(locale) for measure in measures], locale=locale)
    )


def _money(domain: Domain, random: Random) -> Texts:
    amount = random.choice(domain.counts) * random.choice((1, 100))
    return _in_all_languages(domain, _amount(amount, random.choice(_CURRENCIES)))


def _moment(domain: Domain, random: Random) -> Texts:
    day, time = random.randrange(7), _draw_time(random)
    return _in_all_languages(
        domain,
        lambda locale: str(locale.datetime_formats["medium"]).format(
            format_skeleton("Hm", time, locale=locale), _weekday(locale, day)
        ),
    )


def _date(domain: Domain, random: Random) -> Texts:
    day = datetime.date(random.choice(_YEARS), 1, 1) + datetime.timedelta(random.randrange(365))
    full = random.random() < 0.5
    return _in_all_languages(
        domain,
        lambda locale: (
            format_date(day, "full", locale)
            if full
            else str(format_skeleton("MMMMd", day, locale=locale))
        ),
    )


_KINDS: dict[str, Callable[[Domain, Random], Texts]] = {
    "phrase": _phrase,
    "places": _places,
    "measures": _measures,
    "money": _money,
    "moment": _moment,
    "date": _date,
}


def sentences(domain: Domain, random: Random) -> Iterator[Sentence]:
    """Draw sentences without end, by the weights of their kinds. Sentences may repeat."""
    names = [name for name, _ in domain.kinds]
    weights = [weight for _, weight in domain.kinds]
    while True:
        kind = random.choices(names, weights)[0]
        yield Sentence(kind, _KINDS[kind](domain, random))
