"""Linear layers whose weight alone is int8."""

import torch
from torch import Tensor

from qspec_core.lowering import Lowering
from qspec_core.patterns import Match, Reason, ReasonCode
from qspec_x86._lowering._layer import output_shape
from qspec_x86._weights import read_weight

__all__ = ["lower_weight_only"]

aten = torch.ops.aten


def lower_weight_only(match: Match, lowering: Lowering) -> Reason | None:
    """Lower to the kernel that reads int8 weights and computes in bfloat16."""
    weight = read_weight(match, lowering)
    if isinstance(weight, Reason):
        return weight
    anchor, x, bias = match.anchor, match.operand("input"), match.operand("bias")
    value = x.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype is not torch.bfloat16:
        return Reason(ReasonCode.UNSUPPORTED_ARGUMENT, "its input is not bfloat16")
    integers = lowering.constant("_x86_weight", weight.integers, anchor)
    scale = lowering.constant("_x86_scale", weight.scale.to(torch.bfloat16), anchor)
    rows = lowering.call(anchor, aten.reshape.default, x, [-1, weight.integers.shape[1]])
    rows = lowering.call(anchor, aten.contiguous.default, rows)  # the kernel refuses rows that are not
    result = lowering.call(anchor, aten._weight_int8pack_mm.default, rows, integers, scale)
    result = lowering.call(anchor, aten.reshape.default, result, output_shape(lowering, anchor, x))
    if bias is not None:
        result = lowering.call(anchor, aten.add.Tensor, result, bias)
    result.meta = dict(anchor.meta)
    anchor.replace_all_uses_with(result)
    return None
