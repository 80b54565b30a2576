"""Definitions of the `quantized_decomposed` operators, for a torch that has none.

Each is written from its schema: quantize is `clamp(round(x / scale) + zero_point)`, dequantize `(q - zero_point) *
scale`, both in float32. They run on every device, and on fake tensors, since they are made of torch's own operators.
"""

import math

import torch
from torch import Tensor
from torch.library import Library

__all__ = ["define_quantized_decomposed"]

_NAMESPACE = "quantized_decomposed"
_EPS = torch.finfo(torch.float32).eps
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def _integers(scaled: Tensor, zero_points: Tensor | int, low: Tensor | int, high: Tensor | int) -> Tensor:
    return torch.clamp(torch.round(scaled) + zero_points, low, high)


def _in_float32(x: Tensor) -> Tensor:
    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


def _quantize_per_tensor(
    input: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    # Times the inverse, as runtimes do: dividing rounds otherwise where a value lies near the middle of two steps.
    return _integers(_in_float32(input) * (1.0 / scale), zero_point, quant_min, quant_max).to(dtype)


def _quantize_per_tensor_tensor(
    input: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    return _integers(_in_float32(input) * (1.0 / scale), zero_point, quant_min, quant_max).to(dtype)


def _quantize_per_tensor_tensor2(
    input: Tensor, scale: Tensor, zero_point: Tensor, quant_min: Tensor, quant_max: Tensor, dtype: torch.dtype
) -> Tensor:
    return _integers(_in_float32(input) * (1.0 / scale), zero_point, quant_min, quant_max).to(dtype)


def _dequantize_per_tensor(
    input: Tensor,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    wide = torch.float32 if out_dtype is None else out_dtype
    return (input.to(wide) - zero_point) * scale


def _dequantize_per_tensor_tensor(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: Tensor | int,
    quant_max: Tensor | int,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    wide = torch.float32 if out_dtype is None else out_dtype
    return ((input.to(wide) - zero_point) * scale).to(wide)


def _along(parameters: Tensor, like: Tensor, axis: int) -> Tensor:
    """One value for each channel, shaped to broadcast against `like`."""
    shape = [1] * like.dim()
    shape[axis] = -1
    return parameters.reshape(shape)


def _quantize_per_channel(
    input: Tensor, scales: Tensor, zero_points: Tensor, axis: int, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    x = _in_float32(input)
    scaled = x * (1.0 / _along(scales, x, axis))
    return _integers(scaled, _along(zero_points, x, axis), quant_min, quant_max).to(dtype)


def _dequantize_per_channel(
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
    wide = torch.float32 if out_dtype is None else out_dtype
    shifted = input if zero_points is None else input - _along(zero_points, input, axis)
    return shifted.to(wide) * _along(scales, input, axis).to(wide)


def _choose_qparams(
    input: Tensor, quant_min: int, quant_max: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    low, high = (limit.to(torch.float32).reshape(1) for limit in torch.aminmax(input))
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / float(quant_max - quant_min)).clamp(min=eps)
    zero_point = (quant_min - torch.round(low / scale).to(torch.int32)).clamp(quant_min, quant_max)
    return scale.to(torch.float64), zero_point.to(torch.int64)


def _choose_qparams_symmetric(
    input: Tensor, quant_min: int, quant_max: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    low, high = (limit.to(torch.float32).reshape(1) for limit in torch.aminmax(input))
    largest = torch.maximum(-low.clamp(max=0.0), high.clamp(min=0.0))
    scale = (largest / (float(quant_max - quant_min) / 2)).clamp(min=eps)
    middle = (quant_min + quant_max + 1) // 2 if dtype == torch.uint8 else 0
    return scale.to(torch.float64), torch.full_like(scale, middle, dtype=torch.int64)


def _choose_qparams_per_token(input: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    largest = input.abs().amax(dim=-1, keepdim=True)
    if largest.dtype == torch.float16:
        largest = largest.to(torch.float32)  # its smallest normal value is above the floor
    scale = largest.clamp(min=1e-5) / (2 ** (torch.iinfo(dtype).bits - 1) - 1)
    return scale, torch.zeros_like(scale)


def _choose_qparams_per_token_asymmetric(input: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    quant_min, quant_max = -128, 127  # of int8, whatever the dtype: the operator's meaning
    low, high = input.amin(dim=-1, keepdim=True), input.amax(dim=-1, keepdim=True)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / float(quant_max - quant_min)).clamp(min=_EPS)
    at_low, at_high = low / scale, high / scale
    # Of the two ends, the one that the rounded zero point moves less.
    from_low = (quant_min + at_low) + (quant_max + at_high) > 0
    zero_point = torch.where(from_low, quant_min - at_low, quant_max - at_high)
    zero_point = torch.round(zero_point.clamp(quant_min, quant_max))
    return scale.to(torch.float64), zero_point.to(torch.int64)


def _quantize_per_token(
    input: Tensor, scales: Tensor, zero_points: Tensor, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    scaled = _in_float32(input) * (1.0 / scales)
    return torch.clamp(torch.round(scaled + zero_points), quant_min, quant_max).to(dtype)


def _dequantize_per_token(
    input: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    output_dtype: torch.dtype,
) -> Tensor:
    return (input.to(torch.float32) - zero_points).to(output_dtype) * scales.to(output_dtype)


def _grouped(x: Tensor, parameters: Tensor, group_size: int) -> tuple[Tensor, list[int]]:
    """The last dimension cut into groups, (rows, groups, group size), and the shape of their parameters."""
    rows = math.prod(x.shape[:-1])
    return x.reshape(rows, -1, group_size), [rows, -1, 1]


def _quantize_per_channel_group(
    input: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    group_size: int = 128,
) -> Tensor:
    groups, shape = _grouped(input, scales, group_size)
    scaled = groups * (1.0 / scales.reshape(shape))
    return _integers(scaled, zero_points.reshape(shape), quant_min, quant_max).to(dtype).reshape(input.shape)


def _dequantize_per_channel_group(
    input: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    group_size: int = 128,
    output_dtype: torch.dtype = torch.float32,
) -> Tensor:
    groups, shape = _grouped(input, scales, group_size)
    shifted = groups if zero_points is None else groups - zero_points.reshape(shape)
    return (shifted * scales.reshape(shape)).reshape(input.shape).to(output_dtype)


def _convert_element_type(input: Tensor, dtype: torch.dtype) -> Tensor:
    # A copy even where the dtype is the same: an operator may not return its input.
    return input.to(dtype, copy=True)


class _FakeQuantPerChannel(torch.autograd.Function):
    """Quantize and dequantize; the gradient passes where the value lies within the range."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        input: Tensor,
        scales: Tensor,
        zero_points: Tensor,
        axis: int,
        quant_min: int,
        quant_max: int,
    ) -> Tensor:
        scale, zero = _along(scales, input, axis), _along(zero_points, input, axis)
        moved = torch.round(_in_float32(input) * (1.0 / scale)) + zero
        ctx.save_for_backward((moved >= quant_min) & (moved <= quant_max))
        return ((moved.clamp(quant_min, quant_max) - zero) * scale).to(input.dtype)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, None, None, None, None, None]:
        (inside,) = ctx.saved_tensors  # type: ignore[attr-defined]  # torch's stub of the context leaves it out
        return gradients[0] * inside, None, None, None, None, None


def _fake_quant_per_channel(
    input: Tensor, scales: Tensor, zero_points: Tensor, axis: int, quant_min: int, quant_max: int
) -> Tensor:
    result: Tensor = _FakeQuantPerChannel.apply(input, scales, zero_points, axis, quant_min, quant_max)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return result
