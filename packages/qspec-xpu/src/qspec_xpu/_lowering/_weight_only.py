"""Lowering of weight-only linear layers: int8 weights, or int4 in groups."""

import torch
from torch import Tensor
from torch.fx import Node

from qspec_core.graph import constant_value, require_tensor_value
from qspec_core.lowering import Lowering, Quantized, output_shape, quantized_operand, read_weight
from qspec_core.patterns import Match, Reason
from qspec_xpu._lowering._kernels import WEIGHT_ONLY_4, WEIGHT_ONLY_8

__all__ = ["lower_weight_only", "pack_four_bits"]

aten = torch.ops.aten
_WORD = 8
"""Weights of 4 bits in one int32."""
_MIDDLE = 8


def lower_weight_only(match: Match, lowering: Lowering[None]) -> Reason | None:
    """Lower to the kernel that reads int8 or int4 weights and computes in the dtype of its input."""
    anchor, x, bias = match.anchor, match.operand("input"), match.operand("bias")
    found, features = quantized_operand(match, "weight"), require_tensor_value(match.operand("weight")).shape[1]
    # (..., features) -> (rows, features) -> (rows, outputs) -> (..., outputs)
    rows = lowering.call(anchor, aten.reshape.default, x, [-1, features])
    rows = lowering.call(anchor, aten.contiguous.default, rows)  # the kernels refuse other layouts
    if found.group_size is None:
        result = _eight_bits(match, lowering, rows)
    else:
        result = _four_bits(found, lowering, anchor, rows)
    if isinstance(result, Reason):
        return result
    result = lowering.call(anchor, aten.reshape.default, result, output_shape(lowering, anchor, x))
    if bias is not None:
        result = lowering.call(anchor, aten.add.Tensor, result, bias)
    result.meta = dict(anchor.meta)
    anchor.replace_all_uses_with(result)
    return None


def _eight_bits(match: Match, lowering: Lowering[None], rows: Node) -> Node | Reason:
    weight = read_weight(match, lowering)
    if isinstance(weight, Reason):
        return weight
    integers = lowering.constant("_xpu_weight", weight.integers, match.anchor)
    scale = lowering.constant("_xpu_scale", weight.scale, match.anchor)
    return lowering.call(match.anchor, WEIGHT_ONLY_8, rows, integers, scale)


def _four_bits(found: Quantized, lowering: Lowering[None], anchor: Node, rows: Node) -> Node | Reason:
    """Source: torch, mkldnn/xpu/Blas.cpp, `_weight_int4pack_mm_xpu`; detail/WoQMatmul.cpp: u4 weights, s8 zeros."""
    value = require_tensor_value(anchor)
    if value.dtype is torch.float32:
        return Reason.unsupported("its input is torch.float32; the 4-bit kernel takes bfloat16 and float16")
    tensors = [constant_value(lowering.module, node) for node in (found.integers, found.scale, found.zero_point)]
    integers, scale, zero_point = tensors
    if integers is None or scale is None:
        return Reason.unsupported("the weight is computed when the model runs")
    nibbles = integers.detach().to(torch.int32) - found.quant_min
    zeros = torch.zeros_like(scale) if zero_point is None else zero_point.detach()
    zeros = zeros.to(torch.int32) - found.quant_min
    # (outputs, groups) -> (groups, outputs)
    scales, zeros = scale.detach().t().contiguous(), zeros.t().contiguous()
    packed = lowering.constant("_xpu_weight", pack_four_bits(nibbles), anchor)
    given = lowering.constant("_xpu_scale", scales.to(value.dtype), anchor)
    middle = lowering.constant("_xpu_zero", zeros.to(torch.int8), anchor)
    return lowering.call(anchor, WEIGHT_ONLY_4, rows, packed, found.group_size, given, middle)


def pack_four_bits(nibbles: Tensor) -> Tensor:
    """Pack integers of 0..15 into words, the first one in the lowest bits.

    (outputs, features) -> int32, (outputs, features / 8)
    """
    # (outputs, features) -> (outputs, words, 8)
    words = nibbles.to(torch.int64).reshape(len(nibbles), -1, _WORD)
    shifts = torch.arange(0, 4 * _WORD, 4)
    packed = (words << shifts).sum(-1)
    # As int32, words of 2**31 and more are negative.
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
