"""Reader of CTranslate2's model files, version 6 of their binary format.

After the version (u32), the name of the model's class and its revision (u32) follow the variables
and then the aliases, each after their number (u32). A variable has a name, a rank (u8), sides (u32
each), an element type (u8), a number of bytes (u32) and the bytes. An alias has a name and that of
a variable. A name has a length (u16), text and a zero. All numbers are little-endian. CTranslate2
writes the format in ``python/ctranslate2/specs/model_spec.py``.
"""

import struct
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esrt.errors import CheckpointError

VERSION = 6
# Element types by their number. 5, bfloat16, is not one of numpy's.
_DTYPES = [np.dtype(name) for name in ("<f4", "i1", "<i2", "<i4", "<f2")]
_MAX_RANK = 8


def read_variables(data: memoryview, prefix: str) -> dict[str, NDArray[Any]]:
    """Read the variables whose names begin with a prefix.

    Args:
        data: the content of a file.
        prefix: beginning of the names. Aliases are not read.

    Returns:
        The variables by their names without the prefix, as views of ``data``.

    Raises:
        CheckpointError: the content is not a whole file of this version.
    """
    try:
        return _variables(_Reader(data), prefix)
    except ValueError as error:
        raise CheckpointError(
            f"The CTranslate2 model is damaged: {error}.", "Use the file as it was published."
        ) from error


def _variables(reader: "_Reader", prefix: str) -> dict[str, NDArray[Any]]:
    version = reader.number("<I")
    if version != VERSION:
        raise ValueError(f"its format has version {version}, not {VERSION}")
    reader.name()
    reader.number("<I")
    variables: dict[str, NDArray[Any]] = {}
    for _ in range(reader.number("<I")):
        name, variable = reader.name(), reader.variable()
        if name in variables:
            raise ValueError(f"{name} is there twice")
        if name.startswith(prefix):
            variables[name] = variable
    for _ in range(2 * reader.number("<I")):
        reader.name()
    if reader.rest:
        raise ValueError(f"{reader.rest} bytes follow the last alias")
    return {name.removeprefix(prefix): variable for name, variable in variables.items()}


class _Reader:
    """Position in a file, which does not pass the end.

    Raises:
        ValueError: in each method; the file ends too early, or a field is not valid.
    """

    def __init__(self, data: memoryview) -> None:
        self._data, self._position = data, 0

    @property
    def rest(self) -> int:
        """Number of bytes behind the position."""
        return len(self._data) - self._position

    def number(self, form: str) -> int:
        """Read a number in a format of `struct`."""
        (number,) = struct.unpack(form, self._bytes(struct.calcsize(form)))
        return int(number)

    def name(self) -> str:
        """Read a name."""
        return bytes(self._bytes(self.number("<H"))).decode().removesuffix("\0")

    def variable(self) -> NDArray[Any]:
        """Read a variable without its name, as a view."""
        rank = self.number("B")
        if rank > _MAX_RANK:
            raise ValueError(f"a variable has {rank} axes")
        shape = [self.number("<I") for _ in range(rank)]
        kind = self.number("B")
        if kind >= len(_DTYPES):
            raise ValueError(f"the element type {kind} is unknown")
        dtype, size = _DTYPES[kind], self.number("<I")
        if size != prod(shape) * dtype.itemsize:
            raise ValueError(f"a variable {shape} of {dtype} has {size} bytes")
        return np.frombuffer(self._bytes(size), dtype).reshape(shape)

    def _bytes(self, count: int) -> memoryview:
        if count > self.rest:
            raise ValueError(f"it ends after {len(self._data)} bytes")
        self._position += count
        return self._data[self._position - count : self._position]
