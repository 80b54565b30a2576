"""Kernels of the `quantized_decomposed` operators in plain torch, with the arithmetic of torch 2.13."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from qspec_core._errors import SpecError

__all__ = [
    "choose_qparams",
    "choose_qparams_per_token",
    "choose_qparams_per_token_asymmetric",
    "choose_qparams_symmetric",
    "convert_element_type",
    "dequantize_per_channel",
    "dequantize_per_channel_group",
    "dequantize_per_tensor",
    "dequantize_per_tensor_tensor",
    "dequantize_per_token",
    "fake_quant_per_channel",
    "keep_mask",
    "masked_gradient",
    "quantize_per_channel",
    "quantize_per_channel_group",
    "quantize_per_tensor",
    "quantize_per_tensor_tensor",
    "quantize_per_tensor_tensor2",
    "quantize_per_token",
]

_INTEGERS = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32)
_BOUNDS = {dtype: (torch.iinfo(dtype).min, torch.iinfo(dtype).max) for dtype in _INTEGERS} | {
    dtype: (int(torch.finfo(dtype).min), int(torch.finfo(dtype).max))
    for dtype in (torch.float8_e5m2, torch.float8_e4m3fn)
}
_TOKEN_SMALLEST = 1e-5  # lower bound on the largest magnitude of a token, in choose_qparams_per_token


def _require(holds: bool, problem: str, found: object) -> None:
    if not holds:
        raise SpecError(f"quantized_decomposed: {problem}", found=found, remedy="correct the arguments of the operator")


def _check_range(quant_min: int, quant_max: int, dtype: torch.dtype) -> None:
    _require(dtype in _BOUNDS, "the dtype cannot hold quantized values", dtype)
    low, high = _BOUNDS[dtype]
    fits = low <= quant_min and quant_max <= high
    _require(fits, "the range lies outside the dtype", f"{quant_min}..{quant_max} in {dtype}")


def _as_float32(input: Tensor) -> Tensor:
    _require(
        input.dtype in (torch.float32, torch.float16, torch.bfloat16), "the tensor is not floating point", input.dtype
    )
    return input.float()


def _broadcast_along(values: Tensor, axis: int, rank: int) -> Tensor:
    """One value for each channel: (channels,) -> (1, ..., channels, ..., 1), of this rank."""
    _require(axis < rank, "the axis is not a dimension of the tensor", f"axis {axis} of {rank} dimensions")
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def _scalar(value: Tensor) -> Any:  # float or int, as the tensor's dtype is
    _require(value.numel() == 1, "scale and zero point must have 1 element each", tuple(value.shape))
    return value.item()


def quantize_per_tensor(
    input: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    _check_range(quant_min, quant_max, dtype)
    return torch.clamp(torch.round(_as_float32(input) * (1.0 / scale)) + zero_point, quant_min, quant_max).to(dtype)


def quantize_per_tensor_tensor(
    input: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    return quantize_per_tensor(input, _scalar(scale), _scalar(zero_point), quant_min, quant_max, dtype)


def quantize_per_tensor_tensor2(
    input: Tensor, scale: Tensor, zero_point: Tensor, quant_min: Tensor, quant_max: Tensor, dtype: torch.dtype
) -> Tensor:
    return quantize_per_tensor(
        input, _scalar(scale), _scalar(zero_point), _scalar(quant_min), _scalar(quant_max), dtype
    )


def dequantize_per_tensor(
    input: Tensor,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    _require(input.dtype == dtype, f"the tensor is not {dtype}", input.dtype)
    _require(dtype in _BOUNDS, "the dtype cannot hold quantized values", dtype)
    return (input.to(torch.float32 if out_dtype is None else out_dtype) - zero_point) * scale


def dequantize_per_tensor_tensor(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int | Tensor,
    quant_max: int | Tensor,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    return dequantize_per_tensor(input, _scalar(scale), _scalar(zero_point), 0, 0, dtype, out_dtype=out_dtype)


def quantize_per_channel(
    input: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
) -> Tensor:
    _check_range(quant_min, quant_max, dtype)
    wide = _as_float32(input)
    inverse, zero = 1.0 / _broadcast_along(scales, axis, input.dim()), _broadcast_along(zero_points, axis, input.dim())
    return torch.clamp(torch.round(wide * inverse) + zero, quant_min, quant_max).to(dtype)


def dequantize_per_channel(
    input: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    _require(input.dtype == dtype, f"the tensor is not {dtype}", input.dtype)
    _check_range(quant_min, quant_max, dtype)
    shifted = input if zero_points is None else input - _broadcast_along(zero_points, axis, input.dim())
    return (shifted * _broadcast_along(scales, axis, input.dim())).to(torch.float32 if out_dtype is None else out_dtype)


def choose_qparams(
    input: Tensor, quant_min: int, quant_max: int, eps: float, dtype: torch.dtype, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    _as_float32(input)
    _require(dtype in _BOUNDS, "the dtype cannot hold quantized values", dtype)
    _require(
        quant_min <= 0 <= quant_max != quant_min,
        "the range does not hold 0 and other values",
        f"{quant_min}..{quant_max}",
    )
    limits = torch.aminmax(input)
    low, high, steps = limits.min.clamp(max=0.0), limits.max.clamp(min=0.0), float(quant_max - quant_min)
    smallest = torch.tensor([eps], dtype=torch.float32, device=input.device)
    if symmetric:
        scale = torch.maximum(torch.maximum(-low, high) / (steps / 2), smallest)
        return scale.double(), torch.full_like(scale, 128 if dtype == torch.uint8 else 0, dtype=torch.int64)
    scale = torch.maximum((high - low) / steps, smallest)
    zero_point = (quant_min - torch.round(low / scale).to(torch.int32)).clamp(quant_min, quant_max)
    return scale.double(), zero_point.to(torch.int64)


choose_qparams_symmetric = partial(choose_qparams, symmetric=True)


def choose_qparams_per_token(input: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    _require(dtype == torch.int8, "parameters per token exist for int8 only", dtype)
    largest = input.abs().amax(dim=-1, keepdim=True)
    if largest.dtype == torch.float16:
        largest = largest.float()  # dividing a small float16 would underflow
    scale = largest.clamp(min=_TOKEN_SMALLEST).div(127)
    return scale, torch.zeros_like(scale)


def choose_qparams_per_token_asymmetric(input: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    low = input.amin(dim=-1, keepdim=True).clamp(max=0.0)
    high = input.amax(dim=-1, keepdim=True).clamp(min=0.0)
    scale = ((high - low) / 255.0).clamp(min=torch.finfo(torch.float32).eps)
    from_low, from_high = low / scale, high / scale
    # Compute the zero point from the end of the range that gives the smaller error.
    zero_point = torch.where((-128 + from_low) + (127 + from_high) > 0, -128 - from_low, 127 - from_high)
    return scale.double(), zero_point.clamp(-128, 127).round().to(torch.int64)


def _check_tokens(input: Tensor, scales: Tensor, zero_points: Tensor) -> None:
    tokens = input.shape[:-1].numel()
    fits = scales.numel() == tokens == zero_points.numel()
    _require(
        fits,
        "there must be one scale and zero point for each token",
        f"{scales.numel()} scales and {zero_points.numel()} zero points for {tokens} tokens",
    )


def quantize_per_token(
    input: Tensor, scales: Tensor, zero_points: Tensor, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    _check_range(quant_min, quant_max, dtype)
    _check_tokens(input, scales, zero_points)
    return (input * (1.0 / scales) + zero_points).round().clamp(quant_min, quant_max).to(dtype)


def dequantize_per_token(
    input: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    output_dtype: torch.dtype,
) -> Tensor:
    return ((input - zero_points) * scales).to(output_dtype)


def _group_size(input: Tensor, scales: Tensor, group_size: int) -> int:
    """Size of a group. A group larger than a row, with one scale for each row, is the whole row."""
    _require(group_size > 1, "the group must have 2 elements or more", f"group_size={group_size}")
    _require(input.dim() == 2, "only matrices have groups", f"{input.dim()} dimensions")
    columns = input.shape[-1]
    size = columns if group_size > columns and scales.shape[-1] == 1 else group_size
    _require(columns % size == 0, "the groups do not divide the rows", f"{columns} columns, groups of {size}")
    return size


def quantize_per_channel_group(
    input: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    group_size: int,
) -> Tensor:
    groups = input.reshape(-1, _group_size(input, scales, group_size))  # (rows, columns) -> (groups, group size)
    _require(not bool(torch.isnan(groups).any()), "the tensor holds NaN", int(torch.isnan(groups).sum()))
    integers = (groups * (1.0 / scales.reshape(-1, 1)) + zero_points.reshape(-1, 1)).round()
    return integers.clamp(quant_min, quant_max).to(dtype).reshape(input.shape)


def dequantize_per_channel_group(
    input: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    group_size: int,
    output_dtype: torch.dtype,
) -> Tensor:
    groups = input.reshape(-1, _group_size(input, scales, group_size))  # (rows, columns) -> (groups, group size)
    zeros = torch.zeros((), dtype=torch.int32, device=scales.device) if zero_points is None else zero_points
    shifted = groups - (zeros if zero_points is None else zeros.reshape(-1, 1))
    return (shifted * scales.reshape(-1, 1)).reshape(input.shape).to(output_dtype)


def _rounded(input: Tensor, scales: Tensor, zero_points: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values in quantized steps before clamping, and scale and zero point shaped to broadcast."""
    _require(input.dtype == torch.float32, "the tensor is not float32", input.dtype)
    scale = _broadcast_along(scales.float(), axis, input.dim())
    zero = _broadcast_along(zero_points.to(torch.int32), axis, input.dim())
    return torch.round(input * (1.0 / scale)) + zero, scale, zero


def fake_quant_per_channel(
    input: Tensor, scales: Tensor, zero_points: Tensor, axis: int, quant_min: int, quant_max: int
) -> Tensor:
    steps, scale, zero = _rounded(input, scales, zero_points, axis)
    return (torch.clamp(steps, quant_min, quant_max) - zero) * scale


def keep_mask(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # Any: torch's context and arguments
    input, scales, zero_points, axis, quant_min, quant_max = inputs
    steps, _, _ = _rounded(input, scales, zero_points, axis)
    ctx.save_for_backward((steps >= quant_min) & (steps <= quant_max))


def masked_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:  # Any: as above
    (mask,) = ctx.saved_tensors
    return gradient * mask, None, None, None, None, None


def convert_element_type(input: Tensor, dtype: torch.dtype) -> Tensor:
    converted: Tensor = torch.ops.prims.convert_element_type.default(input, dtype)
    return converted
