"""The page on robustness, compared with its record."""

import json

from esrt.bundled import REPOSITORY
from tests.docs.tables import page, plain, tables

RECORD = json.loads((REPOSITORY / "docs/figures/robustness.json").read_text("utf-8"))
_, BARS, CONDITIONS, SOUNDS = tables(page("robustness.md"))


def as_written(rows: list[dict[str, object]], titles: list[str]) -> list[dict[str, str]]:
    return [{title: str(row[title.replace(" ", "_")]) for title in titles} for row in rows]


def test_the_page_has_the_outcomes_of_the_record() -> None:
    assert len(CONDITIONS) == 41
    assert as_written(RECORD["rows"], list(CONDITIONS[0])) == CONDITIONS
    assert as_written(RECORD["sounds"], list(SOUNDS[0])) == SOUNDS
    assert f"{RECORD['rows'][0]['right']} of 24" in page("robustness.md")


def test_the_page_has_the_bars_of_the_record() -> None:
    assert {plain(row["bar"]): float(row["value, %"]) for row in BARS} == {
        bar["name"]: bar["value"] for bar in RECORD["bars"]
    }
    for row, bar in zip(BARS, RECORD["bars"], strict=True):
        assert row["bound"] == f"at {'least' if bar['at_least'] else 'most'} {bar['bound']:g}"
