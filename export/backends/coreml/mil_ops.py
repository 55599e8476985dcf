"""MIL's operations in torch: one function for each operation that occurs, named as in MIL.

The definitions are those of coremltools (``converters/mil/mil/ops/defs``). A mode or a default that
no program here uses is an error.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def add(x: Tensor, y: Tensor) -> Tensor:
    """Add with broadcasting."""
    return x + y


def cast(x: Tensor, dtype: str) -> Tensor:
    """Convert to another type."""
    return x.to({"fp16": torch.float16, "fp32": torch.float32, "int32": torch.int32}[dtype])


def concat(values: list[Tensor], axis: Tensor, interleave: Tensor) -> Tensor:
    """Join along an axis, one value after the other."""
    if interleave:
        raise ValueError("interleaving is not supported")
    # Sizes are scalars.
    return torch.cat(
        [value.reshape(-1) if value.ndim == 0 else value for value in values], int(axis)
    )


def constexpr_affine_dequantize(
    quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor
) -> Tensor:
    """Scale times (quantized - zero point), with a scale and zero point per slice of the axis."""
    along = [1] * quantized_data.ndim
    along[int(axis)] = -1
    centred = quantized_data.float() - zero_point.float().reshape(along)
    return centred * scale.reshape(along)


def conv(
    x: Tensor,
    weight: Tensor,
    strides: Tensor,
    pad_type: str,
    pad: Tensor,
    dilations: Tensor,
    groups: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Convolve (batch, channels, length); ``pad`` is the number of zeros before and after."""
    if pad_type != "custom":
        raise ValueError(f"the padding {pad_type!r} is not supported")
    return nn.functional.conv1d(
        nn.functional.pad(x, pad.tolist()),
        weight,
        bias,
        stride=strides.tolist(),
        dilation=dilations.tolist(),
        groups=int(groups),
    )


def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """Scale times (quantized - zero point)."""
    return (input.float() - (0 if zero_point is None else zero_point.float())) * scale


def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """Divide and round down."""
    return x // y


def gather(
    x: Tensor,
    indices: Tensor,
    axis: Tensor,
    batch_dims: Tensor,
    validate_indices: Tensor | None = None,
) -> Tensor:
    """Select slices of ``x`` along an axis by index."""
    if batch_dims:
        raise ValueError("batch dimensions are not supported")
    place: list[slice | Tensor] = [slice(None)] * x.ndim
    place[int(axis)] = indices.long()
    return x[tuple(place)]


def gelu(x: Tensor, mode: str) -> Tensor:
    """Gaussian error linear unit: x times the normal distribution function of x."""
    if mode != "EXACT":
        raise ValueError(f"the mode {mode!r} is not supported")
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def layer_norm(x: Tensor, axes: Tensor, gamma: Tensor, beta: Tensor, epsilon: Tensor) -> Tensor:
    """Normalize the last axis to zero mean and unit variance, then scale and shift."""
    if [axis % x.ndim for axis in axes.tolist()] != [x.ndim - 1]:
        raise ValueError(f"the axes {axes.tolist()} are not supported")
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + epsilon) * gamma + beta


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by the transposed weight and add the bias."""
    return nn.functional.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: Tensor, transpose_y: Tensor) -> Tensor:
    """Multiply matrices over the last two axes."""
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def mul(x: Tensor, y: Tensor) -> Tensor:
    """Multiply with broadcasting."""
    return x * y


def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None
) -> Tensor:
    """Round to multiples of the scale, add the zero point and clamp to 8 bits."""
    dtype = {"int8": torch.int8, "uint8": torch.uint8}[output_dtype]
    limits = torch.iinfo(dtype)
    codes = (input / scale).round() + (0 if zero_point is None else zero_point.float())
    return codes.clamp(limits.min, limits.max).to(dtype)


def relu(x: Tensor) -> Tensor:
    """Replace negative numbers by zero."""
    return x.clamp(min=0)


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """Change the shape; -1 is inferred."""
    sizes = shape.tolist()
    if 0 in sizes:
        raise ValueError("copied dimensions are not supported")
    return x.reshape(sizes)


def shape(x: Tensor) -> Tensor:
    """Sizes as int32."""
    return torch.tensor(x.shape, dtype=torch.int32)


def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
) -> Tensor:
    """Slice each axis from ``begin`` to ``end``; a set mask selects the edge of the axis."""
    first = begin.tolist() if begin_mask is None else begin.masked_fill(begin_mask, 0).tolist()
    sizes = torch.tensor(x.shape, dtype=end.dtype)
    last = (end if end_mask is None else torch.where(end_mask, sizes, end)).tolist()
    for start, stop, size in zip(first, last, x.shape, strict=True):
        # Python would wrap or clip such bounds; Core ML's behaviour is not documented.
        if not 0 <= start < stop <= size:
            raise ValueError(f"{start}:{stop} does not lie within {size}")
    return x[tuple(slice(*bounds) for bounds in zip(first, last, strict=True))]


def softmax(x: Tensor, axis: Tensor) -> Tensor:
    """Exponentials normalized to sum to one along an axis."""
    return x.softmax(int(axis))


def transpose(x: Tensor, perm: Tensor) -> Tensor:
    """Reorder the axes."""
    return x.permute(perm.tolist())


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        *(add, cast, concat, constexpr_affine_dequantize, conv, dequantize, floor_div, gather),
        *(gelu, layer_norm, linear, matmul, mul, quantize, relu, reshape, shape),
        *(slice_by_index, softmax, transpose),
    )
}
