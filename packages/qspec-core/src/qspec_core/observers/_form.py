"""Quantize and dequantize calls that convert writes in place of an observer, as data."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Argument

from qspec_core import ops
from qspec_core._torch import OpOverload

__all__ = ["ConvertedForm", "Step"]


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
        """Quantize a constant. Scale and zero point must be given."""
        for step in self.before:
            tensor = step(tensor)
        scale: Any = self.scale  # a tensor or a number
        zero_point = self.zero_point
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
