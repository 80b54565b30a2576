"""Building blocks of the translation: constants, casts, and the quantize operators of an opset."""

from collections.abc import Sequence
from typing import Any

from qspec_core.onnx._errors import OnnxExportError
from qspec_core.onnx._libraries import library

__all__ = ["FLOAT8", "RANGES", "Emitter"]

Value = Any  # onnx_ir.Value, a number, or an onnx_ir.DataType: none has types here

FLOAT8 = ("FLOAT8E4M3FN", "FLOAT8E5M2")
RANGES = {
    "INT8": (-128, 127),
    "UINT8": (0, 255),
    "INT16": (-32768, 32767),
    "UINT16": (0, 65535),
    "INT4": (-8, 7),
    "UINT4": (0, 15),
    "INT32": (-(2**31), 2**31 - 1),
}
_FOUR_BITS = {"INT8": "INT4", "UINT8": "UINT4"}
_FLOAT8_SINCE, _WIDE_SINCE = 19, 21
"""Opsets that brought float8, and 16 bits, 4 bits and blocks, to QuantizeLinear and DequantizeLinear."""


class Emitter:
    """Adds nodes to the graph that is being exported. dtypes are given by name or as onnx_ir.DataType.

    `op` calls an operator of the opset by its name.

    Args:
        opset: opset of the file.
        constants: names of the placeholders that are parameters and buffers.
    """

    def __init__(self, opset: int, constants: frozenset[str]) -> None:
        self._ir, self._numpy = library("onnx_ir"), library("numpy")
        self._opset, self._constants = opset, constants
        self.kept: set[str] = set()
        self.op = library("onnxscript").values.Opset("", opset)

    @property
    def has_blocks(self) -> bool:
        """Whether the quantize operators take groups."""
        return self._opset >= _WIDE_SINCE

    def dtype(self, dtype: Value) -> Value:
        """A dtype as onnx_ir.DataType."""
        return self._ir.DataType[dtype] if isinstance(dtype, str) else self._ir.DataType(dtype)

    def name(self, dtype: Value) -> str:
        """The name of a dtype."""
        name: str = self.dtype(dtype).name
        return name

    def range_of(self, dtype: Value) -> tuple[int, int] | None:
        """Smallest and largest integer of a dtype; None for float8."""
        return RANGES.get(self.name(dtype))

    def typed(self, value: Value, dtype: Value) -> Value:
        """The same value, with its dtype noted. Casts read it."""
        value.dtype = self.dtype(dtype)
        return value

    def constant(self, value: float | Sequence[int], dtype: Value) -> Value:
        """A constant scalar or vector."""
        kind = self.dtype(dtype)
        array = self._numpy.array(value, dtype=kind.numpy())
        return self.typed(self.op.Constant(value=self._ir.tensor(array, dtype=kind)), kind)

    def number(self, value: Value, dtype: Value) -> Value:
        """A Python number as a constant; a value as it is."""
        return self.constant(value, dtype) if isinstance(value, int | float) else value

    def cast(self, value: Value, dtype: Value, *, always: bool = False) -> Value:
        """A value in another dtype; the value itself if it has that dtype."""
        kind = self.dtype(dtype)
        if value.dtype == kind and not always:
            return value
        result = self.typed(self.op.Cast(value, to=kind.value), kind)
        result.shape = value.shape
        return result

    def reshape(self, value: Value, shape: tuple[int, ...]) -> Value:
        """A value in a shape that may hold one -1."""
        result = self.typed(self.op.Reshape(value, self.constant(shape, "INT64")), value.dtype)
        result.shape = self._ir.Shape([None if size < 0 else size for size in shape])
        return result

    def reshape_like(self, value: Value, like: Value) -> Value:
        """A value in the shape of another one."""
        sizes = tuple(like.shape)
        if all(isinstance(size, int) for size in sizes):
            return self.reshape(value, sizes)
        return self.typed(self.op.Reshape(value, self.op.Shape(like)), value.dtype)

    def along(self, value: Value, axis: int | None, rank: int) -> Value:
        """One value for each channel: (channels,) -> (1, ..., channels, ..., 1); other values as they are."""
        if axis is None or len(value.shape or ()) != 1:
            return value
        return self.reshape(value, tuple(-1 if index == axis else 1 for index in range(rank)))

    def clip(self, integers: Value, low: int, high: int, dtype: Value) -> Value:
        """Integers clamped to a range."""
        return self.typed(self.op.Clip(integers, self.constant(low, dtype), self.constant(high, dtype)), dtype)

    def zero(self, zero_point: Value, dtype: Value) -> Value:
        """A zero point in the dtype of its integers; None if the dtype takes none."""
        if zero_point is None or self.name(dtype) == "INT32":
            return None
        if isinstance(zero_point, int | float):
            return self.constant(int(zero_point), dtype)
        return self.cast(zero_point if zero_point.shape != (1,) else self.reshape(zero_point, ()), dtype)

    def can_quantize(self, dtype: Value, zero_point: Value) -> bool:
        """Whether QuantizeLinear computes what the operator does.

        It rounds to float8; the operator rounds to integers first.

        Raises: OnnxExportError: the opset has no such dtype at all.
        """
        self._require(dtype)
        return self._has_integers(dtype) and self._is_integral(zero_point)

    def can_dequantize(self, dtype: Value, zero_point: Value) -> bool:
        """Whether DequantizeLinear computes what the operator does.

        Raises: OnnxExportError: the opset has no such dtype at all.
        """
        self._require(dtype)
        if self.name(dtype) in FLOAT8 or self.name(dtype) == "INT32":
            return zero_point is None or (isinstance(zero_point, int) and zero_point == 0)
        return self._has_integers(dtype) and self._is_integral(zero_point)

    def _require(self, dtype: Value) -> None:
        if self.name(dtype) in FLOAT8 and self._opset < _FLOAT8_SINCE:
            raise OnnxExportError(
                f"opset {self._opset} has no {self.name(dtype)}",
                found=f"opset={self._opset}",
                expected=f"opset {_FLOAT8_SINCE} or newer",
                remedy=f"pass opset={_FLOAT8_SINCE} or a newer one",
            )

    def _has_integers(self, dtype: Value) -> bool:
        name = self.name(dtype)
        return name in ("INT8", "UINT8") or (name in ("INT16", "UINT16") and self._opset >= _WIDE_SINCE)

    def _is_integral(self, zero_point: Value) -> bool:
        """Whether a zero point is one of the integers, not a real number between them."""
        if zero_point is None or isinstance(zero_point, int):
            return True
        floats = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16")
        return not isinstance(zero_point, float) and self.name(zero_point.dtype) not in floats

    def narrowest(self, integers: Value, dtype: Value, limits: tuple[int, int]) -> Value:
        """Dtype to store a constant in: 4 bits if its range fits them and the opset has them."""
        four = _FOUR_BITS.get(self.name(dtype))
        if four is None or self._opset < _WIDE_SINCE or self._constant_of(integers) is None:
            return dtype
        low, high = RANGES[four]
        return self.dtype(four) if low <= limits[0] and limits[1] <= high else dtype

    def keep(self, integers: Value) -> None:
        """Note that a constant must stay a tensor of integers: `kept` has its placeholder's name."""
        name = self._constant_of(integers)
        if name is not None:
            self.kept.add(name)

    def _constant_of(self, value: Value) -> str | None:
        """Placeholder of the parameter or buffer that a value is, or is reshaped from."""
        producer = value.producer()
        while producer is not None and producer.op_type == "Reshape":
            value = producer.inputs[0]
            producer = value.producer()
        return value.name if producer is None and value.name in self._constants else None

    def quantize_linear(
        self, x: Value, scale: Value, zero: Value, dtype: Value, axis: int | None, block: int | None
    ) -> Value:
        """QuantizeLinear. The dtype is that of the zero point."""
        zero = self.constant(0, dtype) if zero is None and axis is None else zero
        return self.typed(self.op.QuantizeLinear(x, scale, zero, **_granularity(axis, block)), dtype)

    def dequantize_linear(
        self, integers: Value, scale: Value, zero: Value, axis: int | None, block: int | None
    ) -> Value:
        """DequantizeLinear, to float32."""
        inputs = (integers, scale) if zero is None else (integers, scale, zero)
        return self.typed(self.op.DequantizeLinear(*inputs, **_granularity(axis, block)), "FLOAT")


def _granularity(axis: int | None, block: int | None) -> dict[str, int]:
    attributes = {} if axis is None else {"axis": axis}
    return attributes if block is None else attributes | {"block_size": block}
