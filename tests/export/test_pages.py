"""The pages on the front end and the manifest, compared with the exports."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from esrt.manifest import Precision
from export.backends import get_recipe
from export.parity import BOUNDS
from tests.docs.tables import Row, page, plain, tables
from tests.export.helpers import FORMS, KINDS, Exporter

MANIFEST, FRONT_END = page("manifest.md"), page("front-end.md")
SECTIONS = {
    "": "The manifest",
    "inputs": "A tensor of `inputs` or `outputs`",
    "outputs": "A tensor of `inputs` or `outputs`",
    "front_end": "`front_end`",
    "quantization": "`quantization`",
    "parity": "Parity",
}


def by(title: str, table: list[Row]) -> dict[str, Row]:
    return {plain(row[title]): row for row in table}


def written(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a manifest, with the fields that hold them."""
    yield "", data
    for name in SECTIONS:
        for value in data.get(name, []) if name in ("inputs", "outputs") else [data.get(name)]:
            if value is not None:
                yield name, value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_every_field_that_an_export_writes_is_on_the_page(
    kind: str, form: str, artifacts: Exporter
) -> None:
    data = json.loads((artifacts(kind, form).folder / "manifest.json").read_text("utf-8"))
    for name, value in written(data):
        (table,) = tables(MANIFEST, heading=SECTIONS[name])
        fields = by("field", table)
        assert value.keys() <= fields.keys()
        optional = {field for field, row in fields.items() if "optional" in row.get("type", "")}
        assert fields.keys() - value.keys() <= optional


def test_kinds_are_those_of_the_recipes() -> None:
    listed = by("`kind`", tables(MANIFEST)[0])
    assert set(listed) == set(KINDS)
    for kind, row in listed.items():
        recipe = get_recipe(kind)
        assert plain(row["`entry`"]) == recipe.entry
        offered = [plain(name) for name in row["activations of int8"].split(", ")]
        assert sorted(offered) == sorted(recipe.activations)


def test_bounds_are_those_of_the_exports() -> None:
    (in_manifest,) = tables(MANIFEST, heading="Parity")
    figures = by("field", in_manifest)
    features = by("precision", tables(FRONT_END, heading="What follows")[-1])
    for precision in Precision:
        cosine, error = BOUNDS[precision].cosine, BOUNDS[precision].error
        assert float(figures["cosine_min"][precision]) == cosine
        assert float(figures["error_max"][precision]) == error
        assert float(features[precision]["least cosine of a token"]) == cosine
        assert float(features[precision]["largest error of a number"]) == error
