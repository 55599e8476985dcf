"""The page on the manifest, compared with the schema and the bundled model.

tests/export/test_pages.py compares it with the exports.
"""

import json
import re
from types import UnionType
from typing import Any, get_args, get_origin

import msgspec
import pytest

from esrt.bundled import CHECKPOINT
from esrt.checkpoint import open_checkpoint
from esrt.manifest import FrontEnd, Manifest, Quantization, TensorSpec
from esrt.speech import SpeechSettings
from tests.docs.tables import Row, page, plain, tables

PAGE = page("manifest.md")
STRUCTS: dict[str, type[msgspec.Struct]] = {
    "The manifest": Manifest,
    "A tensor of `inputs` or `outputs`": TensorSpec,
    "`front_end`": FrontEnd,
    "`speech`": SpeechSettings,
    "`quantization`": Quantization,
}
NAMES = {str: "string", int: "integer", float: "number"}
STRUCT_NAMES = {FrontEnd: "front end", SpeechSettings: "object", Quantization: "quantization"}
EXAMPLE = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[-1]
each_struct = pytest.mark.parametrize("heading", STRUCTS)


def rows(heading: str) -> list[Row]:
    (table,) = tables(PAGE, heading=heading)
    return table


def json_type(kind: Any) -> str:
    """Name of a type in the page's words."""
    if kind in STRUCT_NAMES:
        return STRUCT_NAMES[kind]
    if get_origin(kind) is UnionType:
        (inner,) = (argument for argument in get_args(kind) if argument is not type(None))
        return f"{json_type(inner)} or null" if inner is not Quantization else json_type(inner)
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        if inner is TensorSpec:
            return "list of tensors"
        return "list of " + " or ".join(f"{name}s" for name in json_type(inner).split(" or "))
    if get_origin(kind) is dict:
        return f"object of {json_type(get_args(kind)[1])}s"
    return next(name for base, name in NAMES.items() if issubclass(kind, base))


@each_struct
def test_fields_and_types_are_those_of_the_schema(heading: str) -> None:
    expected = [
        (field.name, json_type(field.type) + ("" if field.required else ", optional"))
        for field in msgspec.structs.fields(STRUCTS[heading])
    ]
    assert [(plain(row["field"]), row["type"]) for row in rows(heading)] == expected
    assert all(len(row["meaning"]) > 10 for row in rows(heading))


@each_struct
def test_examples_fit_the_schema(heading: str) -> None:
    types = {field.name: field.type for field in msgspec.structs.fields(STRUCTS[heading])}
    examples = {
        plain(row["field"]): json.loads(plain(row["example"]))
        for row in rows(heading)
        if row["example"]
    }
    assert len(examples) >= 3
    for name, value in examples.items():
        msgspec.convert(value, types[name], strict=True)


def test_the_example_is_a_manifest_of_the_bundled_model() -> None:
    manifest = msgspec.json.decode(EXAMPLE, type=Manifest)
    checkpoint = open_checkpoint(CHECKPOINT)
    assert manifest.fingerprint == checkpoint.fingerprint
    assert manifest.languages == checkpoint.config.languages
    assert manifest.front_end.frame_multiple == checkpoint.config.frame_multiple
    data = json.loads(EXAMPLE)
    whole = {"The manifest": data, "`front_end`": data["front_end"]}
    whole["`speech`"] = data["front_end"]["speech"]
    for heading, values in whole.items():
        for row in rows(heading):
            value = values.get(plain(row["field"]))
            if row["example"] and isinstance(value, str | int | float):
                assert json.loads(plain(row["example"])) == value
