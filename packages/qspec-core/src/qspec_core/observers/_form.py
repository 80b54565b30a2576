"""What an observer stands for in a converted graph, as data that convert writes."""

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
    """One call on a tensor.

    Args:
        target: the operator, whose first argument is the tensor.
        arguments: those after the tensor.
    """

    target: OpOverload
    arguments: tuple[Argument, ...] = ()

    def __call__(self, tensor: Tensor) -> Tensor:
        """Run it."""
        result: Tensor = self.target(tensor, *self.arguments)
        return result


@dataclass(frozen=True)
class ConvertedForm:
    """How the readers of an observed tensor read it after conversion.

    An observer with a method `converted_form(shape)` that returns this is converted by it; `shape` is that of the
    observed tensor, in which sizes may be symbolic. quantize and dequantize are called on the tensor with scale, zero
    point and `limits`; dequantize with `output_dtype` on top where that is given.

    Args:
        quantize: operator that gives the integers.
        dequantize: operator that gives real numbers again.
        dtype: dtype of the integers.
        limits: arguments after scale and zero point.
        scale: scale; None where `choose` finds it when the model runs. A tensor becomes a buffer of the model.
        zero_point: zero point, likewise.
        choose: finds scale and zero point, its two outputs, of each input.
        output_dtype: last argument of dequantize, for operators that take it there.
        before: what is done to the tensor before it is quantized, in order.
        after: what is done to what dequantize returns, in order.
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
        """Quantize a constant; scale and zero point must be known."""
        for step in self.before:
            tensor = step(tensor)
        scale: Any = self.scale  # a tensor or a number
        zero_point = self.zero_point
        if (
            self.quantize is ops.QUANTIZE_PER_CHANNEL
            and isinstance(zero_point, Tensor)
            and zero_point.is_floating_point()
        ):
            # The operator rounds, adds the zero point and truncates: up to a step off where that is no integer.
            shape = [-1 if axis == self.limits[0] else 1 for axis in range(tensor.dim())]
            tensor = tensor + (zero_point * scale).reshape(shape)
            zero_point = torch.zeros_like(zero_point)
        integers: Tensor = self.quantize(tensor, scale, zero_point, *self.limits)
        return integers

    @property
    def last(self) -> tuple[Argument, ...]:
        """Arguments of dequantize after `limits`."""
        return () if self.output_dtype is None else (self.output_dtype,)
