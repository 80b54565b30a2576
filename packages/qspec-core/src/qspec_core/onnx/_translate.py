"""Translation of the `quantized_decomposed` operators to ONNX, one method for each operator.

QuantizeLinear and DequantizeLinear are written wherever the opset has them for the dtype and granularity. Everything
else (parameters by token, zero points that are real numbers, 16 bits before opset 21) is plain arithmetic.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from qspec_core import ops
from qspec_core._torch import OpOverload
from qspec_core.onnx._emit import Emitter
from qspec_core.onnx._profiles import Profile

__all__ = ["Translator"]

Value = Any  # onnx_ir.Value, which has no types here
_TOKEN_SMALLEST = 1e-5
"""Lower bound on the largest magnitude of a token, as in the operator `choose_qparams_per_token`."""


@dataclass(frozen=True)
class _Dynamic:
    """Parameters that were computed from a tensor when the model runs.

    Args:
        source: the tensor.
        scale: scalar of float32.
        zero_point: scalar of the quantized dtype.
        integers: the quantized tensor, if one operator computes both.
    """

    source: Value
    scale: Value
    zero_point: Value
    integers: Value | None


class Translator:
    """The table for `torch.onnx.export`, for one export.

    Args:
        opset: opset of the file.
        profile: the consumer that the file is made for.
        constants: names of the placeholders that are parameters and buffers.
    """

    def __init__(self, opset: int, profile: Profile, constants: frozenset[str]) -> None:
        self._profile = profile
        self._emit = Emitter(opset, constants)
        self._dynamic: dict[int, _Dynamic] = {}
        self._kept: list[Value] = []  # keeps the keys of _dynamic, identities, from being used again

    @property
    def kept(self) -> set[str]:
        """Placeholders of constants that arithmetic dequantizes, and that no constant folding may turn into floats."""
        return self._emit.kept

    def table(self) -> dict[Callable[..., Any], Callable[..., Any]]:
        """The translation of each operator. torch sets an attribute on each, which a method does not take."""
        return {operator: partial(method) for operator, method in self._methods().items()}

    def _methods(self) -> Mapping[OpOverload, Callable[..., Any]]:
        return {
            ops.QUANTIZE: self._quantize_per_tensor,
            ops.QUANTIZE_DYNAMIC: self._quantize_per_tensor,
            ops.QUANTIZE_PER_CHANNEL: self._quantize_per_channel,
            ops.QUANTIZE_PER_GROUP: self._quantize_per_group,
            ops.QUANTIZE_PER_TOKEN: self._quantize_per_token,
            ops.DEQUANTIZE: self._dequantize_per_tensor,
            ops.DEQUANTIZE_DYNAMIC: self._dequantize_per_tensor,
            ops.DEQUANTIZE_PER_CHANNEL: self._dequantize_per_channel,
            ops.DEQUANTIZE_PER_GROUP: self._dequantize_per_group,
            ops.DEQUANTIZE_PER_TOKEN: self._dequantize_per_token,
            ops.CHOOSE_QPARAMS: self._choose_qparams,
            ops.CHOOSE_QPARAMS_SYMMETRIC: self._choose_symmetric,
            ops.CHOOSE_QPARAMS_PER_TOKEN: self._choose_per_token,
            ops.CHOOSE_QPARAMS_PER_TOKEN_ASYMMETRIC: self._choose_per_token_asymmetric,
            ops.CONVERT_ELEMENT_TYPE: self._convert_element_type,
        }

    def _quantize_per_tensor(
        self, x: Value, scale: Value, zero_point: Value, low: int, high: int, dtype: Value
    ) -> Value:
        found = self._dynamic.get(id(scale))
        if found is not None:
            if found.integers is not None and found.source is x:
                return found.integers
            scale, zero_point = found.scale, found.zero_point
        return self._quantized(x, self._scalar(scale), zero_point, (low, high), dtype)

    def _quantize_per_channel(
        self, x: Value, scales: Value, zero_points: Value, axis: int, low: int, high: int, dtype: Value
    ) -> Value:
        return self._quantized(x, scales, zero_points, (low, high), dtype, axis=axis % len(x.shape))

    def _quantized(
        self,
        x: Value,
        scale: Value,
        zero_point: Value,
        limits: tuple[int, int],
        dtype: Value,
        *,
        axis: int | None = None,
        block: int | None = None,
    ) -> Value:
        """Integers of a tensor, clamped to the limits."""
        e = self._emit
        x = e.cast(x, "FLOAT")
        if not e.can_quantize(dtype, zero_point):
            return self._quantized_by_arithmetic(x, scale, zero_point, limits, dtype, axis)
        narrow = limits != e.range_of(dtype)
        if narrow and self._profile.clips_floats and axis is None:
            x = self._clipped(x, scale, zero_point, limits)
            narrow = False
        integers = e.quantize_linear(x, e.cast(scale, "FLOAT"), e.zero(zero_point, dtype), dtype, axis, block)
        return e.clip(integers, *limits, dtype) if narrow else integers

    def _clipped(self, x: Value, scale: Value, zero_point: Value, limits: tuple[int, int]) -> Value:
        """The tensor, clamped to the real numbers of the limits: consumers fuse this with the layer before it."""
        e = self._emit
        zero = e.cast(e.number(zero_point, "INT64"), "FLOAT")
        low, high = (e.op.Mul(e.op.Sub(e.constant(float(limit), "FLOAT"), zero), scale) for limit in limits)
        return e.typed(e.op.Clip(x, low, high), "FLOAT")

    def _quantized_by_arithmetic(
        self, x: Value, scale: Value, zero_point: Value, limits: tuple[int, int], dtype: Value, axis: int | None
    ) -> Value:
        e = self._emit
        rank = len(x.shape)
        scale = e.along(e.cast(scale, "FLOAT"), axis, rank)
        steps = e.op.Round(e.op.Div(x, scale))
        if zero_point is not None:
            steps = e.op.Add(steps, e.along(e.cast(e.number(zero_point, "FLOAT"), "FLOAT"), axis, rank))
        low, high = (e.constant(float(limit), "FLOAT") for limit in limits)
        return e.cast(e.typed(e.op.Clip(steps, low, high), "FLOAT"), dtype)

    def _dequantize_per_tensor(
        self,
        integers: Value,
        scale: Value,
        zero_point: Value,
        low: int,
        high: int,
        dtype: Value,
        out_dtype: Value | None = None,
    ) -> Value:
        found = self._dynamic.get(id(scale))
        if found is not None:
            scale, zero_point = found.scale, found.zero_point
        return self._dequantized(integers, self._scalar(scale), zero_point, (low, high), dtype, out_dtype)

    def _dequantize_per_channel(
        self,
        integers: Value,
        scales: Value,
        zero_points: Value | None,
        axis: int,
        low: int,
        high: int,
        dtype: Value,
        out_dtype: Value | None = None,
    ) -> Value:
        axis %= len(integers.shape)
        return self._dequantized(integers, scales, zero_points, (low, high), dtype, out_dtype, axis=axis)

    def _dequantized(
        self,
        integers: Value,
        scale: Value,
        zero_point: Value,
        limits: tuple[int, int],
        dtype: Value,
        out_dtype: Value | None,
        *,
        axis: int | None = None,
        block: int | None = None,
    ) -> Value:
        """Real numbers of a tensor of integers, in `out_dtype` or float32."""
        e = self._emit
        if e.can_dequantize(dtype, zero_point):
            dtype = e.narrowest(integers, dtype, limits)
            integers, zero = e.cast(integers, dtype), e.zero(zero_point, dtype)
            result = e.dequantize_linear(integers, e.cast(scale, "FLOAT"), zero, axis, block)
        else:
            rank = len(integers.shape)
            e.keep(integers)
            result = e.cast(integers, "FLOAT")
            if zero_point is not None:
                result = e.op.Sub(result, e.along(e.cast(e.number(zero_point, "FLOAT"), "FLOAT"), axis, rank))
            result = e.typed(e.op.Mul(result, e.along(e.cast(scale, "FLOAT"), axis, rank)), "FLOAT")
        return result if out_dtype is None else e.cast(result, out_dtype)

    def _quantize_per_group(
        self, x: Value, scales: Value, zero_points: Value, low: int, high: int, dtype: Value, group_size: int
    ) -> Value:
        e, size = self._emit, _group_size(x, scales, group_size)
        if e.has_blocks and e.can_quantize(dtype, zero_points):
            return self._quantized(x, scales, zero_points, (low, high), dtype, axis=1, block=size)
        rows, scales, zero_points = self._as_rows(x, scales, zero_points, size)
        integers = self._quantized(rows, scales, zero_points, (low, high), dtype, axis=0)
        return e.reshape_like(integers, x)

    def _dequantize_per_group(
        self,
        integers: Value,
        scales: Value,
        zero_points: Value | None,
        low: int,
        high: int,
        dtype: Value,
        group_size: int,
        output_dtype: Value,
    ) -> Value:
        e, size, limits = self._emit, _group_size(integers, scales, group_size), (low, high)
        if e.has_blocks and e.can_dequantize(dtype, zero_points):
            return self._dequantized(integers, scales, zero_points, limits, dtype, output_dtype, axis=1, block=size)
        rows, scales, zero_points = self._as_rows(integers, scales, zero_points, size)
        return e.reshape_like(
            self._dequantized(rows, scales, zero_points, limits, dtype, output_dtype, axis=0), integers
        )

    def _as_rows(self, x: Value, scales: Value, zero_points: Value | None, size: int) -> tuple[Value, Value, Value]:
        """One group in each row: (rows, columns) -> (groups, group size), with a scale for each row."""
        e = self._emit
        zeros = None if zero_points is None else e.reshape(zero_points, (-1,))
        return e.reshape(x, (-1, size)), e.reshape(scales, (-1,)), zeros

    def _quantize_per_token(
        self, x: Value, scales: Value, zero_points: Value, low: int, high: int, dtype: Value
    ) -> Value:
        e = self._emit
        scale, zero = (e.cast(value, "FLOAT") for value in (scales, zero_points))
        steps = e.op.Round(e.op.Add(e.op.Div(e.cast(x, "FLOAT"), scale), zero))
        limits = (e.constant(float(limit), "FLOAT") for limit in (low, high))
        return e.cast(e.typed(e.op.Clip(steps, *limits), "FLOAT"), dtype)

    def _dequantize_per_token(
        self, integers: Value, scales: Value, zero_points: Value, low: int, high: int, dtype: Value, output_dtype: Value
    ) -> Value:
        e = self._emit
        scale, zero = (e.cast(value, "FLOAT") for value in (scales, zero_points))
        result = e.typed(e.op.Mul(e.op.Sub(e.cast(integers, "FLOAT"), zero), scale), "FLOAT")
        return e.cast(result, output_dtype)

    def _choose_qparams(self, x: Value, low: int, high: int, eps: float, dtype: Value) -> tuple[Value, Value]:
        e, source = self._emit, x
        x = e.cast(x, "FLOAT")
        # The operator has no smallest scale: tensors whose range is under 255 * eps get finer steps.
        if self._profile.has_dynamic_quantize and e.name(dtype) == "UINT8" and (low, high) == (0, 255):
            integers, scale, zero = e.op.DynamicQuantizeLinear(x)
            integers = e.typed(integers, "UINT8")
            return self._parameters(source, e.typed(scale, "FLOAT"), e.typed(zero, "UINT8"), integers)
        lowest, highest = self._limits(x)
        span = e.constant(float(high - low), "FLOAT")
        scale = e.op.Max(e.op.Div(e.op.Sub(highest, lowest), span), e.constant(eps, "FLOAT"))
        zero = e.op.Sub(e.constant(float(low), "FLOAT"), e.op.Round(e.op.Div(lowest, scale)))
        limits = (e.constant(float(limit), "FLOAT") for limit in (low, high))
        zero = e.typed(e.op.Clip(zero, *limits), "FLOAT")
        return self._parameters(source, e.typed(scale, "FLOAT"), e.cast(zero, dtype), None)

    def _choose_symmetric(self, x: Value, low: int, high: int, eps: float, dtype: Value) -> tuple[Value, Value]:
        e, source = self._emit, x
        lowest, highest = self._limits(e.cast(x, "FLOAT"))
        half = e.constant((high - low) / 2, "FLOAT")
        scale = e.op.Max(e.op.Div(e.op.Max(e.op.Neg(lowest), highest), half), e.constant(eps, "FLOAT"))
        zero = e.constant(128 if e.name(dtype) == "UINT8" else 0, dtype)
        return self._parameters(source, e.typed(scale, "FLOAT"), zero, None)

    def _limits(self, x: Value) -> tuple[Value, Value]:
        """Smallest and largest element of a tensor, and 0."""
        e = self._emit
        zero = e.constant(0.0, "FLOAT")
        lowest = e.op.Min(e.op.ReduceMin(x, keepdims=0), zero)
        return lowest, e.op.Max(e.op.ReduceMax(x, keepdims=0), zero)

    def _parameters(
        self, source: Value, scale: Value, zero_point: Value, integers: Value | None
    ) -> tuple[Value, Value]:
        """Scale and zero point as the operator returns them: float64 and int64 of shape (1,).

        The quantize and dequantize that follow read the scalars instead, and nothing is left of these two.
        """
        e = self._emit
        wide = e.cast(e.reshape(scale, (1,)), "DOUBLE")
        self._dynamic[id(wide)] = _Dynamic(source, scale, zero_point, integers)
        self._kept.append(wide)
        return wide, e.cast(e.reshape(zero_point, (1,)), "INT64")

    def _choose_per_token(self, x: Value, dtype: Value) -> tuple[Value, Value]:
        e = self._emit
        largest = self._along_last(e.op.ReduceMax, e.typed(e.op.Abs(e.cast(x, "FLOAT")), "FLOAT"))
        scale = e.op.Div(e.op.Max(largest, e.constant(_TOKEN_SMALLEST, "FLOAT")), e.constant(127.0, "FLOAT"))
        zero = e.op.Sub(scale, scale)
        kind = "FLOAT" if e.name(x.dtype) == "FLOAT16" else e.name(x.dtype)
        return e.cast(e.typed(scale, "FLOAT"), kind), e.cast(e.typed(zero, "FLOAT"), kind)

    def _choose_per_token_asymmetric(self, x: Value, dtype: Value) -> tuple[Value, Value]:
        e = self._emit
        x, none = e.cast(x, "FLOAT"), e.constant(0.0, "FLOAT")
        low = e.op.Min(self._along_last(e.op.ReduceMin, x), none)
        high = e.op.Max(self._along_last(e.op.ReduceMax, x), none)
        smallest = e.constant(torch.finfo(torch.float32).eps, "FLOAT")
        scale = e.op.Max(e.op.Div(e.op.Sub(high, low), e.constant(255.0, "FLOAT")), smallest)
        from_low = e.op.Add(e.constant(-128.0, "FLOAT"), e.op.Div(low, scale))
        from_high = e.op.Add(e.constant(127.0, "FLOAT"), e.op.Div(high, scale))
        # The zero point comes from the end of the range that gives the smaller error.
        nearer_low = e.op.Greater(e.op.Add(from_low, from_high), none)
        from_low = e.op.Sub(e.constant(-128.0, "FLOAT"), e.op.Div(low, scale))
        from_high = e.op.Sub(e.constant(127.0, "FLOAT"), e.op.Div(high, scale))
        limits = e.constant(-128.0, "FLOAT"), e.constant(127.0, "FLOAT")
        zero = e.op.Round(e.op.Clip(e.op.Where(nearer_low, from_low, from_high), *limits))
        return e.cast(e.typed(scale, "FLOAT"), "DOUBLE"), e.cast(e.typed(zero, "FLOAT"), "INT64")

    def _along_last(self, reduce: Callable[..., Value], x: Value) -> Value:
        """One value for each token: (..., features) -> (..., 1)."""
        return reduce(x, self._emit.constant([-1], "INT64"), keepdims=1)

    def _convert_element_type(self, x: Value, dtype: Value) -> Value:
        return self._emit.cast(x, dtype, always=True)

    def _scalar(self, value: Value) -> Value:
        """A scale that is a number, or a tensor of one element, as a scalar."""
        e = self._emit
        if isinstance(value, float | int):
            return e.constant(float(value), "FLOAT")
        return value if not value.shape else e.reshape(value, ())


def _group_size(x: Value, scales: Value, group_size: int) -> int:
    """Size of a group. A group larger than a row, with one scale for each row, is the whole row."""
    columns = x.shape[-1]
    return columns if group_size > columns and scales.shape[-1] == 1 else group_size
