"""Weights in the form that the kernels take: int8, symmetric, one scale for each output channel."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from qspec_core.graph import constant_value
from qspec_core.lowering import Lowering, quantized_operand
from qspec_core.patterns import Match, Reason
from qspec_x86._lowering._options import Options
from qspec_x86._observer import pair_sums

__all__ = ["Weight", "narrow_weight", "read_weight"]

_INT16_MAX = 2**15 - 1


@dataclass(frozen=True)
class Weight:
    """A quantized weight.

    Args:
        integers: int8, (outputs, ...), or with its outputs at the row's `ch_axis`; contiguous.
        scale: float32, (outputs,).
    """

    integers: Tensor
    scale: Tensor


def read_weight(match: Match, lowering: Lowering[Options]) -> Weight | Reason:
    """Read the integers and scales of a match's weight, or return the reason why the kernels cannot take them."""
    found = quantized_operand(match, "weight")
    integers = constant_value(lowering.module, found.integers)
    if integers is None:
        return Reason.unsupported("the weight is computed when the model runs, so it cannot be packed")
    if integers.dtype is not torch.int8:
        return Reason.unsupported(f"the weight is {integers.dtype}; the kernels take int8")
    axis = next(operand.ch_axis or 0 for operand in match.row.operands if operand.name == "weight")
    if found.ch_axis not in (None, axis):
        return Reason.unsupported(
            f"the weight has its scales along dimension {found.ch_axis}; the kernels take dimension {axis}"
        )
    scale = _numbers(found.scale, lowering)
    zero_point = _numbers(0 if found.zero_point is None else found.zero_point, lowering)
    if scale is None or zero_point is None:
        return Reason.unsupported("the weight's scale is computed when the model runs")
    if bool((zero_point != 0).any()):
        return Reason.unsupported("the weight has a zero point other than 0; the kernels take symmetric weights")
    outputs = integers.shape[axis]
    # Some packing operators read storage as if it were contiguous; other strides give wrong numbers without an error.
    return Weight(integers.detach().contiguous(), scale.to(torch.float32).reshape(-1).expand(outputs).contiguous())


def _numbers(value: float | Node, lowering: Lowering[Options]) -> Tensor | None:
    """Value of a parameter that is a number or a constant; None if it is computed."""
    if isinstance(value, Node):
        constant = constant_value(lowering.module, value)
        return None if constant is None else constant.detach()
    return torch.tensor(value)


def narrow_weight(weight: Weight, input_max: int) -> Weight | None:
    """Make the scale coarser in the channels where the sum of two products could overflow 16 bits.

    With inputs of 0..255, the sum of two weights of one sign may be up to 128. A channel is divided by the factor that
    it needs, at most 2, and gets the scale that fits its integers best. Quantizing the float weights with
    `PairSumObserver` loses less, because it rounds once.

    Args:
        weight: as it was quantized.
        input_max: largest integer of the input.
    Returns: the weight; None if no channel needs a coarser scale.
    Cost: O(weights).
    Source: Intel 64 and IA-32 Architectures Software Developer's Manual, VPMADDUBSW: products of u8 by s8, summed in
        pairs into s16 with saturation.
    """
    limit = _INT16_MAX // input_max
    sums = pair_sums(weight.integers.to(torch.int32))
    fits = sums <= limit
    if bool(fits.all()):
        return None
    # Rounding can add half a step to each weight of a pair, so the limit for the quotients is one less.
    # (outputs, ...) -> (outputs, weights of a channel)
    rows = weight.integers.reshape(len(fits), -1).to(torch.float32)
    factor = torch.where(fits, 1.0, sums / (limit - 1))
    rounded = torch.round(rows / factor[:, None])
    # Least squares: if most weights are in the middle of two steps, rounding makes all of them larger, or all smaller.
    exact = (rows * rounded).sum(dim=1) / (rounded * rounded).sum(dim=1)
    return Weight(rounded.to(torch.int8).reshape(weight.integers.shape), weight.scale * torch.where(fits, 1.0, exact))
