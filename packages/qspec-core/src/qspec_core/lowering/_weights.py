"""Weights as most kernels take them, int8 and symmetric with one scale for each output channel; plain parameters."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qspec_core._errors import LoweringError
from qspec_core.graph import constant_value
from qspec_core.lowering._rows import Lowering, Quantized, quantized_operand
from qspec_core.patterns import Match, Reason

__all__ = ["Weight", "plain_parameters", "read_weight"]


@dataclass(frozen=True)
class Weight:
    """A quantized weight.

    Args:
        integers: int8, (outputs, ...), or with its outputs at the row's `ch_axis`; contiguous.
        scale: float32, (outputs,).
    """

    integers: Tensor
    scale: Tensor


def read_weight(match: Match, lowering: Lowering[Any]) -> Weight | Reason:
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


def _numbers(value: float | Node, lowering: Lowering[Any]) -> Tensor | None:
    """Value of a parameter that is a number or a constant; None if it is computed."""
    if isinstance(value, Node):
        constant = constant_value(lowering.module, value)
        return None if constant is None else constant.detach()
    return torch.tensor(value)


def plain_parameters(quantized: Quantized) -> tuple[float, int]:
    """Scale and zero point.

    Raises: LoweringError: they are tensors: of several scales, or computed when the model runs.
    """
    scale, zero_point = quantized.scale, quantized.zero_point
    if isinstance(scale, Node) or isinstance(zero_point, Node):
        raise LoweringError(
            "the parameters of a quantized tensor are not plain numbers",
            where=quantized.node,
            found=f"scale {scale}, zero point {zero_point}",
            remedy="quantize the tensor per tensor and statically",
        )
    return float(scale), 0 if zero_point is None else int(zero_point)
