"""CTranslate2's format: variables of a file, and files that are damaged."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from esrt.ctranslate2 import read_variables
from esrt.errors import CheckpointError

TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
VARIABLES = {
    "decoder/embeddings/weight": np.arange(12, dtype=np.float32).reshape(4, 3),
    "encoder/conv1/weight": np.linspace(-1, 1, 24, dtype=np.float16).reshape(2, 3, 4),
    "encoder/conv1/bias": np.array([1, -2], np.int32),
    "encoder/empty": np.zeros((3, 0), np.int8),
    "encoder/num_heads": np.array(8, np.int16),
}


def text(value: str) -> bytes:
    encoded = value.encode() + b"\0"
    return struct.pack("<H", len(encoded)) + encoded


def variable(name: str, value: NDArray[Any]) -> bytes:
    shape = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
    kind = struct.pack("<BI", TYPES[value.dtype.name], value.nbytes)
    return text(name) + shape + kind + value.tobytes()


def model(variables: list[bytes], version: int = 6) -> bytes:
    head = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    aliases = struct.pack("<I", 1) + text("decoder/projection") + text("decoder/embeddings")
    return head + b"".join(variables) + aliases


WHOLE = model([variable(*item) for item in VARIABLES.items()])


def read(data: bytes) -> dict[str, NDArray[Any]]:
    return read_variables(memoryview(data), "encoder/")


def test_variables_of_a_prefix_are_read() -> None:
    found = read(WHOLE)
    expected = {n[8:]: value for n, value in VARIABLES.items() if n.startswith("encoder/")}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def empty(shape: tuple[int, ...], size: int, kind: int = 4) -> bytes:
    """A variable that claims a shape, a type and a number of bytes, and has none."""
    return text("encoder/a") + struct.pack(f"<B{len(shape)}IBI", len(shape), *shape, kind, size)


DAMAGED = {
    "empty": (b"", "ends after 0 bytes"),
    "another version": (model([], version=5), "version 5, not 6"),
    "bytes behind the end": (WHOLE + b"\0", "1 bytes follow"),
    "one variable twice": (
        model(2 * [variable("encoder/a", np.zeros(1, np.int8))]),
        "a is there twice",
    ),
    "a huge variable": (model([empty((2**31 - 1,), 2**32 - 2)]), "ends after"),
    "a shape beyond the bytes": (model([empty((2**32 - 1,) * 8, 2)]), "has 2 bytes"),
    "too many axes": (model([empty((1,) * 9, 2)]), "has 9 axes"),
    "a huge shape without bytes": (model([empty((2**32 - 1,) * 7 + (0,), 0)]), "damaged"),
    "an unknown type": (model([empty((0,), 0, kind=5)]), "type 5 is unknown"),
    "a name that is no text": (WHOLE.replace(b"conv1", b"\xff" * 5), "damaged"),
    "billions of variables": (WHOLE.replace(b"\5\0\0\0\x1a", b"\xff\xff\xff\xff\x1a"), "damaged"),
}


@pytest.mark.parametrize(("data", "words"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(data)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
def test_a_part_is_refused(length: int) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        read(WHOLE[:length])


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_any_bytes_give_variables_or_an_error(data: st.DataObject) -> None:
    changed = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(WHOLE) - 1))
        changed[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    try:
        found = read(bytes(changed))
    except CheckpointError:
        return
    assert sum(value.nbytes for value in found.values()) <= len(changed)
