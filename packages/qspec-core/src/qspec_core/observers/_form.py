"""Quantize and dequantize calls that convert writes in place of an observer, as data."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Argument

from qspec_core import ops
from qspec_core._torch import OpOverload

__all__ = ["ConvertedForm", "Step"]


_BLOCK = 1 << 18
"""Elements of a constant that are quantized together: 1 MiB for each intermediate result."""

_BY_ROWS = (ops.QUANTIZE, ops.QUANTIZE_PER_CHANNEL, ops.QUANTIZE_PER_GROUP)
"""Operators that quantize each row of a tensor independently of the others, with parameters that have the same rows."""


@dataclass(frozen=True)
class Step:
    """One operator call on a tensor.

    Args:
        target: the operator, whose first argument is the tensor.
        arguments: those after the tensor.
    """

    target: OpOverload
    arguments: tuple[Argument, ...] = ()

    def __call__(self, tensor: Tensor) -> Tensor:
        """Call the operator on a tensor."""
        result: Tensor = self.target(tensor, *self.arguments)
        return result


@dataclass(frozen=True)
class ConvertedForm:
    """How the converted graph quantizes and dequantizes an observed tensor.

    Convert calls the method `converted_form(shape)` of an observer that has one; `shape` is the shape of the observed
    tensor and may have symbolic sizes. quantize and dequantize get the tensor, scale, zero point and `limits`;
    dequantize also gets `output_dtype` if that is given.

    Args:
        quantize: operator from real numbers to integers.
        dequantize: operator from integers to real numbers.
        dtype: dtype of the integers.
        limits: arguments after scale and zero point.
        scale: scale; None where `choose` finds it when the model runs. A tensor becomes a buffer of the model.
        zero_point: zero point; None and tensors as for `scale`.
        choose: step that returns scale and zero point of each input.
        output_dtype: last argument of dequantize, for operators that have one.
        before: steps on the tensor before it is quantized, in order.
        after: steps on the result of dequantize, in order.
    """

    quantize: OpOverload
    dequantize: OpOverload
    dtype: torch.dtype
    limits: tuple[Argument, ...]
    scale: Tensor | float | None = None
    zero_point: Tensor | int | None = None
    choose: Step | None = None
    output_dtype: torch.dtype | None = None
    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()

    def integers(self, tensor: Tensor) -> Tensor:
        """Quantize a constant. Scale and zero point must be given.

        Cost: memory for the integers and a few MiB, whatever the size of the constant.
        """
        for step in self.before:
            tensor = step(tensor)
        rows = max(_BLOCK // max(tensor[:1].numel(), 1), 1) if tensor.dim() else 0
        if self.quantize not in _BY_ROWS or not 0 < rows < len(tensor):
            return self._integers(tensor, self.scale, self.zero_point)
        integers = torch.empty(tensor.shape, dtype=self.dtype, device=tensor.device)
        for first in range(0, len(tensor), rows):
            part = slice(first, first + rows)
            scale, zero_point = (self._of_rows(value, part, tensor.dim()) for value in (self.scale, self.zero_point))
            integers[part] = self._integers(tensor[part], scale, zero_point)
        return integers

    def _of_rows(self, value: Any, rows: slice, dimensions: int) -> Any:  # a tensor, a number or None
        """The part of scale or zero point that belongs to some rows of the tensor."""
        is_per_channel = self.quantize is ops.QUANTIZE_PER_CHANNEL
        if not isinstance(value, Tensor) or (is_per_channel and self.limits[0] not in (0, -dimensions)):
            return value
        return value[rows]

    def _integers(self, tensor: Tensor, scale: Any, zero_point: Any) -> Tensor:  # tensors or numbers
        if (
            self.quantize is ops.QUANTIZE_PER_CHANNEL
            and isinstance(zero_point, Tensor)
            and zero_point.is_floating_point()
        ):
            # The operator rounds, adds the zero point and truncates: up to a step off for a fractional zero point.
            # Add the zero point first. (channels,) -> (1, ..., channels, ..., 1)
            shape = [-1 if axis == self.limits[0] else 1 for axis in range(tensor.dim())]
            tensor = tensor + (zero_point * scale).reshape(shape)
            zero_point = torch.zeros_like(zero_point)
        integers: Tensor = self.quantize(tensor, scale, zero_point, *self.limits)
        return integers

    @property
    def last(self) -> tuple[Argument, ...]:
        """Arguments of dequantize after `limits`."""
        return () if self.output_dtype is None else (self.output_dtype,)
