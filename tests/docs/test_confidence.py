"""The section on confidence, compared with the model's record."""

import json

from esrt.bundled import CHECKPOINT
from tests.docs.tables import page, tables

RECORD = json.loads((CHECKPOINT / "confidence.json").read_text("utf-8"))
SHARES = ("right_pct", "cautioned_right_pct", "cautioned_wrong_pct", "silent_failures_pct")


def test_the_page_has_the_figures_of_the_record() -> None:
    (table,) = tables(page("training.md"), heading="Confidence")
    found = [[float(value) for value in list(row.values())[1:]] for row in table]
    assert found == [[row[share] for share in SHARES] for row in RECORD["rows"]]
    assert f"**{RECORD['threshold']}**" in page("training.md")
