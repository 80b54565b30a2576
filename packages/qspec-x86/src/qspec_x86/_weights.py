"""Weights as the kernels take them: int8, symmetric, one scale for each output channel; and the 16-bit rule."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from qspec_core.graphs import constant_value
from qspec_core.lowering import Lowering, quantized_operand
from qspec_core.patterns import Match, Reason, ReasonCode

__all__ = ["Weight", "fits_16_bits", "narrow_weight", "read_weight"]

_INT16_MAX, _INT16_MIN = 2**15 - 1, -(2**15)


@dataclass(frozen=True)
class Weight:
    """A weight behind its dequantize.

    Args:
        integers: int8, (outputs, ...), contiguous.
        scale: float32, (outputs,).
    """

    integers: Tensor
    scale: Tensor


def _declined(detail: str) -> Reason:
    return Reason(ReasonCode.UNSUPPORTED_ARGUMENT, detail)


def read_weight(match: Match, lowering: Lowering) -> Weight | Reason:
    """The integers and scales of a match's weight, or the reason why the kernels cannot take them."""
    found = quantized_operand(match, "weight")
    integers = constant_value(lowering.module, found.integers)
    if integers is None:
        return _declined("the weight is computed when the model runs, so it cannot be packed")
    if integers.dtype is not torch.int8:
        return _declined(f"the weight is {integers.dtype}; the kernels take int8")
    if found.ch_axis not in (None, 0):
        return _declined(f"the weight has its scales along dimension {found.ch_axis}; the kernels take dimension 0")
    scale = _numbers(found.scale, lowering)
    zero_point = _numbers(0 if found.zero_point is None else found.zero_point, lowering)
    if scale is None or zero_point is None:
        return _declined("the weight's scale is computed when the model runs")
    if bool((zero_point != 0).any()):
        return _declined("the weight has a zero point other than 0; the kernels take symmetric weights")
    outputs = integers.shape[0]
    # qlinear_prepack and its kin read storage as if it were contiguous: other strides give garbage, silently.
    return Weight(integers.detach().contiguous(), scale.to(torch.float32).reshape(-1).expand(outputs).contiguous())


def _numbers(value: float | Node, lowering: Lowering) -> Tensor | None:
    """A parameter given as a number or as a constant; None if it is computed."""
    if isinstance(value, Node):
        constant = constant_value(lowering.module, value)
        return None if constant is None else constant.detach()
    return torch.tensor(value)


def fits_16_bits(integers: Tensor, input_max: int) -> Tensor:
    """For each output channel, whether any two products with inputs of 0..`input_max` can be summed in 16 bits.

    Args:
        integers: int8, (outputs, ...).
        input_max: largest integer of the input.
    Returns: bool, (outputs,).
    Cost: O(weights).
    """
    rows = integers.reshape(integers.shape[0], -1).to(torch.int32)
    count = min(2, rows.shape[1])
    largest = rows.topk(count, dim=1).values.clamp(min=0).sum(dim=1)
    smallest = rows.topk(count, dim=1, largest=False).values.clamp(max=0).sum(dim=1)
    return (largest * input_max <= _INT16_MAX) & (smallest * input_max >= _INT16_MIN)


def narrow_weight(weight: Weight, input_max: int) -> Weight | None:
    """The weight with half the resolution in the channels whose sums could leave 16 bits; None if none could.

    Halving takes -128..127 to -64..64, and 64 * 255 * 2 = 32640 fits.
    """
    fits = fits_16_bits(weight.integers, input_max)
    if bool(fits.all()):
        return None
    halved = torch.round(weight.integers.to(torch.float32) / 2).to(torch.int8)
    shape = (-1,) + (1,) * (weight.integers.dim() - 1)
    return Weight(
        torch.where(fits.reshape(shape), weight.integers, halved).contiguous(),
        torch.where(fits, weight.scale, weight.scale * 2),
    )
