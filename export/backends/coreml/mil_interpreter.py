"""Interpreter of Core ML programs in torch, for any machine.

Core ML runs on Apple's systems only. To find a wrong conversion anywhere, the interpreter reads the
saved .mlpackage back (operations, types, weights) and computes the operations one by one, each by a
function of `mil_ops`.
"""

import inspect
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coremltools.proto import MIL_pb2, Model_pb2
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from torch import Tensor

from esrt.arrays import Float32Array
from esrt.errors import ArtifactError, CheckFailed
from export.backends.coreml.mil_ops import OPERATIONS

Value = Tensor | str
Arguments = dict[str, Any]
# Called after each operation with its step, arguments and result.
Observer = Callable[["Step", Arguments, Tensor], None]

_NUMPY_TYPES: dict[int, type[np.generic]] = {
    MIL_pb2.BOOL: np.bool_,
    MIL_pb2.FLOAT16: np.float16,
    MIL_pb2.FLOAT32: np.float32,
    MIL_pb2.INT8: np.int8,
    MIL_pb2.INT32: np.int32,
    MIL_pb2.UINT8: np.uint8,
}
# Header of a blob in MILBlob's StorageFormat.hpp: sentinel, type, size in bytes, offset.
_BLOB_HEADER = struct.Struct("<IIQQ")
_BLOB_SENTINEL = 0xDEADBEEF
_BLOB_TYPES = {1: np.float16, 2: np.float32, 4: np.int8}
_MODEL_PATH = "@model_path/"
_REMEDY = "Export the artifact again: python export/to_coreml.py."
# Oldest systems that read a version of the specification, by Apple's release notes.
_SYSTEMS = {
    7: "iOS 16, macOS 13, watchOS 9 or tvOS 16",
    8: "iOS 17, macOS 14, watchOS 10 or tvOS 17",
}


@dataclass(frozen=True)
class Step:
    """Operation of a program.

    Attributes:
        type: MIL's name of the operation.
        output: name of the result.
        inputs: names of the values of each parameter.
        dtype: declared type of the result.
        shape: declared shape of the result; ``None`` is an unknown dimension.
    """

    type: str
    output: str
    inputs: dict[str, tuple[str, ...]]
    dtype: torch.dtype
    shape: tuple[int | None, ...]


class Program:
    """``main`` function of an .mlpackage.

    Every operation computes in float32, and its result is rounded to the type that the program
    declares. An fp16 program computes the same on hardware that accumulates in float32.

    Args:
        package: the .mlpackage folder.

    Raises:
        ArtifactError: the package cannot be read.
        CheckFailed: the program has an operation, a parameter or a type that the interpreter does
            not know.
    """

    def __init__(self, package: Path) -> None:
        path = _model_path(package)
        spec = Model_pb2.Model()
        try:
            spec.ParseFromString(path.read_bytes())
        except (OSError, DecodeError) as error:
            raise ArtifactError(f"{path} is not a Core ML model: {error}.", _REMEDY) from error
        if "main" not in spec.mlProgram.functions:
            raise ArtifactError(f"{path} contains no ML program.", _REMEDY)
        function = spec.mlProgram.functions["main"]
        block = function.block_specializations[function.opset]
        self.spec = spec
        self.outputs = tuple(block.outputs)
        self.constants: dict[str, Value] = {}
        self.steps: list[Step] = []
        read = _Reader(path.parent)
        for operation in block.operations:
            self._add(operation, read)
        last_use = {
            name: index
            for index, step in enumerate(self.steps)
            for names in step.inputs.values()
            for name in names
        }
        # Values that are freed after each step.
        self._last_used: list[list[str]] = [[] for _ in self.steps]
        for name, index in last_use.items():
            if name not in self.outputs:
                self._last_used[index].append(name)

    @property
    def requirements(self) -> str:
        """Oldest systems that run the program."""
        return _SYSTEMS[self.spec.specificationVersion]

    def of_type(self, name: str) -> list[Step]:
        """Operations of a MIL type, in order."""
        return [step for step in self.steps if step.type == name]

    def _add(self, operation: Any, read: "_Reader") -> None:
        if len(operation.outputs) != 1 or operation.blocks:
            raise _unknown(operation, "has several outputs or inner blocks")
        name = operation.outputs[0].name
        if operation.type == "const":
            self.constants[name] = read(operation.attributes["val"])
            return
        function = OPERATIONS.get(operation.type)
        if function is None:
            raise _unknown(operation, "is not supported")
        inputs: dict[str, tuple[str, ...]] = {}
        for parameter, argument in operation.inputs.items():
            inputs[parameter] = tuple(
                self._bound(binding, f"{name}.{parameter}.{index}", read)
                for index, binding in enumerate(argument.arguments)
            )
        for parameter, value in operation.attributes.items():
            if parameter != "name":
                inputs[parameter] = (f"{name}.{parameter}",)
                self.constants[f"{name}.{parameter}"] = read(value)
        for parameter in inputs:
            if parameter not in inspect.signature(function).parameters:
                raise _unknown(
                    operation, f"has the parameter {parameter!r}, which is not supported"
                )
        dtype, shape = _tensor_type(operation.outputs[0].type)
        self.steps.append(Step(operation.type, name, inputs, _torch_type(dtype), shape))

    def _bound(self, binding: Any, name: str, read: "_Reader") -> str:
        if binding.WhichOneof("binding") == "name":
            return str(binding.name)
        self.constants[name] = read(binding.value)
        return name

    @torch.inference_mode()
    def run(
        self, inputs: Mapping[str, Float32Array], observe: Observer | None = None
    ) -> dict[str, Float32Array]:
        """Evaluate the program.

        Args:
            inputs: arrays by name.
            observe: called after each operation.

        Raises:
            CheckFailed: the model does not accept an input's shape, or an operation fails or
                returns another type or shape than it declares.
        """
        values: dict[str, Tensor] = {}
        for description in self.spec.description.input:
            array = inputs[description.name]
            if not _accepts(description.type.multiArrayType, array.shape):
                raise CheckFailed(
                    f"The program takes no {description.name} of shape {array.shape}.",
                    "Compare the shape with the lengths that the artifact was exported for.",
                )
            values[description.name] = torch.from_numpy(array)
        for step, unused in zip(self.steps, self._last_used, strict=True):
            arguments = self.arguments(step, values)
            result = compute(step, arguments)
            if observe is not None:
                observe(step, arguments, result)
            values[step.output] = result
            for name in unused:
                values.pop(name, None)
        return {name: values[name].numpy() for name in self.outputs}

    def arguments(self, step: Step, values: Mapping[str, Tensor]) -> Arguments:
        """Arguments of an operation by parameter, given the ``values`` computed before it."""
        return {
            parameter: [self._value(name, values) for name in names]
            if len(names) > 1
            else self._value(names[0], values)
            for parameter, names in step.inputs.items()
        }

    def _value(self, name: str, values: Mapping[str, Tensor]) -> Value:
        value = self.constants[name] if name in self.constants else values[name]
        if isinstance(value, Tensor) and value.dtype == torch.float16:
            return value.float()
        return value


def compute(step: Step, arguments: Arguments) -> Tensor:
    """Compute an operation and round its result to the declared type.

    Raises:
        CheckFailed: the operation fails, or returns another type or shape than it declares.
    """
    try:
        result = OPERATIONS[step.type](**arguments)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckFailed(
            f"The operation {step.type} ({step.output}) fails: {error}.",
            _REMEDY,
        ) from error
    if (result.dtype, step.dtype) == (torch.float32, torch.float16):
        result = result.half()
    fits = len(result.shape) == len(step.shape) and all(
        declared in (None, size) for declared, size in zip(step.shape, result.shape, strict=True)
    )
    if result.dtype != step.dtype or not fits:
        raise CheckFailed(
            f"The operation {step.type} ({step.output}) returns {result.dtype} of shape"
            f" {tuple(result.shape)} and declares {step.dtype} of shape {step.shape}.",
            _REMEDY,
        )
    return result


# --- Reading -------------------------------------------------------------------------------------


class _Reader:
    """Reads constants from the program or from the weight files beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, NDArray[np.uint8]] = {}

    def __call__(self, value: Any) -> Value:
        dtype, shape = _tensor_type(value.type)
        if value.WhichOneof("value") == "blobFileValue":
            blob = value.blobFileValue
            array = self._blob(blob.fileName, blob.offset, _numpy_type(dtype))
        else:
            tensor = value.immediateValue.tensor
            content = getattr(tensor, tensor.WhichOneof("value")).values
            if dtype == MIL_pb2.STRING:
                return str(content[0])
            kind = _numpy_type(dtype)
            array = (
                np.frombuffer(bytearray(content), kind)
                if isinstance(content, bytes)
                else np.array(content, kind)
            )
        try:
            return torch.from_numpy(array.reshape([size or 0 for size in shape]))
        except ValueError as error:
            raise ArtifactError(
                f"A constant of the program is damaged: {error}.", _REMEDY
            ) from error

    def _blob(self, name: str, offset: int, dtype: type[np.generic]) -> NDArray[np.generic]:
        path = self.folder / name.removeprefix(_MODEL_PATH)
        try:
            if name not in self.files:
                # Mapped copy-on-write, because torch refuses read-only memory.
                self.files[name] = np.memmap(path, np.uint8, mode="c")
            file = self.files[name]
            sentinel, code, size, start = _BLOB_HEADER.unpack(
                file[offset : offset + _BLOB_HEADER.size].tobytes()
            )
            if sentinel == _BLOB_SENTINEL and _BLOB_TYPES.get(code) is dtype:
                return file[start : start + size].view(dtype)
        except (OSError, ValueError, struct.error) as error:
            raise ArtifactError(f"The weights {path} cannot be read: {error}.", _REMEDY) from error
        raise ArtifactError(f"{path} has no {dtype.__name__} weight at {offset}.", _REMEDY)


def _model_path(package: Path) -> Path:
    """Path of the model's specification, from the package's own manifest."""
    try:
        manifest = json.loads((package / "Manifest.json").read_text("utf-8"))
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
        return package / "Data" / str(entry["path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{package} is not an .mlpackage: {error!r}.", _REMEDY) from error


def _tensor_type(value: Any) -> tuple[int, tuple[int | None, ...]]:
    """MIL type and shape of a declaration."""
    tensor = value.tensorType
    return tensor.dataType, tuple(
        dimension.constant.size if dimension.WhichOneof("dimension") == "constant" else None
        for dimension in tensor.dimensions
    )


def _numpy_type(dtype: int) -> type[np.generic]:
    if dtype not in _NUMPY_TYPES:
        raise CheckFailed(
            f"The interpreter does not know MIL's type {MIL_pb2.DataType.Name(dtype)}.",
            "Add it to export/backends/coreml/mil_interpreter.py.",
        )
    return _NUMPY_TYPES[dtype]


def _torch_type(dtype: int) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, _numpy_type(dtype))).dtype


def _accepts(declared: Any, shape: tuple[int, ...]) -> bool:
    """Whether Core ML accepts an input of that shape, by the model's description."""
    flexibility = declared.WhichOneof("ShapeFlexibility")
    if flexibility == "enumeratedShapes":
        return shape in {tuple(listed.shape) for listed in declared.enumeratedShapes.shapes}
    if flexibility == "shapeRange":
        ranges = declared.shapeRange.sizeRanges
        return len(ranges) == len(shape) and all(
            bounds.lowerBound <= size <= bounds.upperBound
            for bounds, size in zip(ranges, shape, strict=True)
        )
    return shape == tuple(declared.shape)


def _unknown(operation: Any, reason: str) -> CheckFailed:
    return CheckFailed(
        "The interpreter cannot check the program: its operation"
        f" {operation.type} ({operation.outputs[0].name}) {reason}.",
        "Nothing was written; add it to mil_ops.py, or export a graph without it.",
    )
