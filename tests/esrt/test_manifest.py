"""The manifest of an artifact: written, read, and refused with the cause."""

import contextlib
import copy
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esrt.errors import ArtifactError
from esrt.manifest import FORMAT, FrontEnd, Manifest, TensorSpec, read_manifest, sha256
from esrt.speech import DEFAULT_SETTINGS

CONTENT = {"model.onnx": b"graph", "data/weights.bin": b"\0\1\2"}
many = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A folder with two files and a manifest."""
    folder = tmp_path / "artifact"
    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    Manifest(
        model="esrt-tiny",
        fingerprint="0123456789abcdef",
        kind="onnx",
        precision="int8",
        split="qformer",
        feature_width=24,
        max_tokens=50,
        inputs=(TensorSpec("mel", "float32", (1, 128, None)),),
        outputs=(TensorSpec("features", "float32", (1, None, 24)),),
        front_end=FrontEnd(16_000, 400, 160, 128, 8, None, 12.0, DEFAULT_SETTINGS),
        languages=("eng", "deu"),
        entry="model.onnx",
        files={name: sha256(folder / name) for name in CONTENT},
        tools={"onnx": "1.2.3"},
        parity={"cosine_min": 0.99, "clips": 20},
        created_from="modèle-ß",
        format=FORMAT,
    ).write(folder)
    return folder


def load(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def store(folder: Path, data: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps(data), "utf-8")


Place = tuple[str | int, ...]


def places(data: Any, here: Place = ()) -> Iterator[Place]:
    """Path of every value in a JSON document; the path of the document itself is empty."""
    yield here
    if isinstance(data, dict):
        for key, value in data.items():
            yield from places(value, (*here, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from places(value, (*here, index))


def at(data: Any, place: Place) -> Any:
    for step in place:
        data = data[step]
    return data


def test_survives_writing(artifact: Path, tmp_path: Path) -> None:
    manifest = read_manifest(artifact)
    assert manifest.created_from == "modèle-ß"
    assert manifest.inputs[0].shape == (1, 128, None)
    other = tmp_path / "other"
    other.mkdir()
    fixed = msgspec.structs.replace(
        manifest,
        front_end=msgspec.structs.replace(manifest.front_end, padded_seconds=30.0),
        inputs=(TensorSpec("mel", "float32", (1, 128, 3000)),),
        files={},
    )
    fixed.write(other)
    assert read_manifest(other) == fixed != manifest


def test_integers_are_valid_floats(artifact: Path) -> None:
    data = load(artifact)
    data["front_end"]["max_seconds"] = 12
    store(artifact, data)
    seconds = read_manifest(artifact).front_end.max_seconds
    assert (seconds, type(seconds)) == (12.0, float)


def _keyed(data: Any) -> list[Place]:
    """Paths of the keys in the schema: those of the manifest, a tensor and the front end."""
    free = ("files", "tools", "parity")
    return [
        place
        for place in places(data)
        if place and isinstance(place[-1], str) and (len(place) == 1 or place[0] not in free)
    ]


def test_every_missing_key_is_refused(artifact: Path) -> None:
    whole = load(artifact)
    keyed = _keyed(whole)
    assert len(keyed) == 17 + 3 + 3 + 8 + 10
    for place in keyed:
        data = copy.deepcopy(whole)
        del at(data, place[:-1])[place[-1]]
        store(artifact, data)
        with pytest.raises(ArtifactError, match=str(place[-1])):
            read_manifest(artifact)


@pytest.mark.parametrize(
    "place", [(), ("inputs", 0), ("outputs", 0), ("front_end",), ("front_end", "speech")], ids=str
)
def test_unknown_keys_are_refused(artifact: Path, place: Place) -> None:
    data = load(artifact)
    at(data, place)["colour"] = "blue"
    store(artifact, data)
    with pytest.raises(ArtifactError, match="colour"):
        read_manifest(artifact)


def _mistyped(value: Any) -> list[Any]:
    """JSON values of other types than a value's."""
    every: list[Any] = [True, {"a": []}, [{}], "text", 1.5]
    return [
        other
        for other in every
        if type(other) is not type(value) and not (isinstance(value, int) and type(other) is int)
    ]


def test_every_mistyped_value_is_refused(artifact: Path) -> None:
    whole = load(artifact)
    checked = 0
    for place in list(places(whole))[1:]:
        for value in _mistyped(at(whole, place)):
            if value == 1.5 and (place[0] == "parity" or place[-1] == "padded_seconds"):
                continue  # a number is right here
            data = copy.deepcopy(whole)
            at(data, place[:-1])[place[-1]] = value
            store(artifact, data)
            with pytest.raises(ArtifactError, match=r"Expected|Invalid"):
                read_manifest(artifact, verify=False)
            checked += 1
    assert checked > 150


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("precision", "int4"),
        ("split", "decoder"),
        ("format", 1),
        ("format", 0),
        ("feature_width", 24.0),
        ("model", None),
    ],
)
def test_values_outside_the_schema_are_refused(artifact: Path, key: str, value: Any) -> None:
    store(artifact, {**load(artifact), key: value})
    with pytest.raises(ArtifactError, match=f"{key}|{value}"):
        read_manifest(artifact)


@pytest.mark.parametrize("name", CONTENT)
def test_a_changed_file_is_found(artifact: Path, name: str) -> None:
    path = artifact / name
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ArtifactError, match="not the file that was exported"):
        read_manifest(artifact)
    assert read_manifest(artifact, verify=False).entry == "model.onnx"


@pytest.mark.parametrize("name", CONTENT)
def test_a_missing_file_is_found(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    with pytest.raises(ArtifactError, match="missing"):
        read_manifest(artifact)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "no such folder. Export one"),
        ("model.pte", "is a file; an artifact is a folder with a manifest.json"),
        ("empty", "has no manifest.json. Export one"),
        ("artifacts", "has no manifest.json. Name one of the artifacts in it: one, two."),
    ],
)
def test_no_artifact(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "model.pte").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for artifact in ("one", "two"):
        (tmp_path / "artifacts" / artifact).mkdir(parents=True)
        (tmp_path / "artifacts" / artifact / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match=re.escape(words)) as caught:
        read_manifest(tmp_path / name)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000],
    ids=["empty", "cut", "not text", "deep", "long number"],
)
def test_invalid_json_is_refused(artifact: Path, content: bytes) -> None:
    (artifact / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError):
        read_manifest(artifact)


@pytest.mark.parametrize("name", ["/etc/hostname", "../other", "a/../../b"])
def test_names_outside_of_the_folder_are_refused(artifact: Path, name: str) -> None:
    for changes in ({"files": {name: "0" * 64}}, {"entry": name}):
        store(artifact, {**load(artifact), **changes})
        with pytest.raises(ArtifactError, match="not in the folder"):
            read_manifest(artifact, verify=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(artifact: Path, value: float) -> None:
    data = load(artifact)
    store(artifact, {**data, "front_end": {**data["front_end"], "max_seconds": value}})
    with pytest.raises(ArtifactError, match="is not valid"):
        read_manifest(artifact)


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "\ud800", "", ".", "model.onnx/x"], ids=ascii)
def test_names_that_no_file_has_are_refused(artifact: Path, name: str) -> None:
    store(artifact, {**load(artifact), "files": {name: "0" * 64}})
    with pytest.raises(ArtifactError):
        read_manifest(artifact)


def read_or_refuse(folder: Path, data: Any) -> None:
    store(folder, data)
    with contextlib.suppress(ArtifactError):
        assert isinstance(read_manifest(folder), Manifest)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
) | st.just(10**400)


@many
@given(json_values)
def test_any_json_is_a_manifest_or_an_error(artifact: Path, data: Any) -> None:
    read_or_refuse(artifact, data)


@many
@given(st.data(), json_values)
def test_a_manifest_with_any_one_value_replaced_is_a_manifest_or_an_error(
    artifact: Path, choose: st.DataObject, value: Any
) -> None:
    whole = artifact.parent / "whole.json"  # the examples of one test share a folder
    if not whole.exists():
        shutil.copy(artifact / "manifest.json", whole)
    data = json.loads(whole.read_text("utf-8"))
    place = choose.draw(st.sampled_from(list(places(data))[1:]))
    at(data, place[:-1])[place[-1]] = value
    read_or_refuse(artifact, data)
