"""Lowering of weight-only linear layers: int8 weights, or int4 in groups."""

from dataclasses import dataclass

import torch
from torch._ops import OpOverload
from torch.fx import Node

from qspec_core.graph import constant_value, require_tensor_value, tensor_value
from qspec_core.lowering import Lowering, Quantized, quantized_operand, read_weight
from qspec_core.patterns import Match, Reason
from qspec_x86._lowering._kernels import FOUR_BITS, PACK_FOUR_BITS, fits_four_bits
from qspec_x86._lowering._layer import output_shape
from qspec_x86._lowering._options import Options

__all__ = ["lower_weight_only"]

aten = torch.ops.aten
_MIDDLE = 8
"""The integer of 0..15 that the kernel reads as its `zero` argument."""


@dataclass(frozen=True)
class _Call:
    """A kernel, and its arguments after the first, which is the activation."""

    kernel: OpOverload
    arguments: tuple[object, ...]


def lower_weight_only(match: Match, lowering: Lowering[Options]) -> Reason | None:
    """Lower to the kernel that reads int8 or int4 weights and computes in bfloat16."""
    anchor, x, bias = match.anchor, match.operand("input"), match.operand("bias")
    value = tensor_value(x)
    if value is None or value.dtype is not torch.bfloat16:
        return Reason.unsupported("its input is not bfloat16")
    found = quantized_operand(match, "weight")
    outputs, features = require_tensor_value(match.operand("weight")).shape
    group = found.group_size or _whole_rows(found, outputs, features)
    call = _eight_bits(match, lowering) if group is None else _four_bits(found, lowering, anchor, group)
    if isinstance(call, Reason):
        return call
    # (..., features) -> (rows, features) -> (rows, outputs) -> (..., outputs)
    rows = lowering.call(anchor, aten.reshape.default, x, [-1, features])
    rows = lowering.call(anchor, aten.contiguous.default, rows)  # the kernels refuse other layouts
    result = lowering.call(anchor, call.kernel, rows, *call.arguments)
    result = lowering.call(anchor, aten.reshape.default, result, output_shape(lowering, anchor, x))
    if bias is not None:
        result = lowering.call(anchor, aten.add.Tensor, result, bias)
    result.meta = dict(anchor.meta)
    anchor.replace_all_uses_with(result)
    return None


def _eight_bits(match: Match, lowering: Lowering[Options]) -> _Call | Reason:
    weight = read_weight(match, lowering)
    if isinstance(weight, Reason):
        return weight
    integers = lowering.constant("_x86_weight", weight.integers, match.anchor)
    scale = lowering.constant("_x86_scale", weight.scale.to(torch.bfloat16), match.anchor)
    return _Call(aten._weight_int8pack_mm.default, (integers, scale))


def _whole_rows(found: Quantized, outputs: int, features: int) -> int | None:
    """Group size of a 4-bit weight with one scale for each channel; None for other weights.

    Convert writes groups that are whole rows by channel."""
    is_narrow = found.ch_axis == 0 and found.quant_max - found.quant_min < FOUR_BITS
    return features if is_narrow and fits_four_bits(outputs, features, features) else None


def _four_bits(found: Quantized, lowering: Lowering[Options], anchor: Node, group: int) -> _Call | Reason:
    """Source: aten::_weight_int4pack_mm_for_cpu: value = (integer - 8) * scale + zero, in groups of input features."""
    tensors = [constant_value(lowering.module, value) for value in (found.integers, found.scale, found.zero_point)]
    if tensors[0] is None or tensors[1] is None:
        return Reason.unsupported("the weight is computed when the model runs")
    integers, scale = tensors[0].detach().to(torch.int32) - found.quant_min, tensors[1].detach().to(torch.float32)
    zero_point = torch.zeros_like(scale) if tensors[2] is None else tensors[2].detach().to(torch.float32)
    zero = (_MIDDLE + found.quant_min - zero_point) * scale
    # (outputs, groups) twice -> (groups, outputs, 2)
    pairs = torch.stack([scale, zero], dim=-1).reshape(len(scale), -1, 2).transpose(0, 1)
    # Stored as one byte each and packed by a node, because the packed order depends on the CPU.
    stored = lowering.constant("_x86_weight", integers.to(torch.uint8), anchor)
    wide = lowering.call(anchor, aten.to.dtype, stored, torch.int32)
    packed = lowering.call(anchor, PACK_FOUR_BITS, wide, 1)
    scales = lowering.constant("_x86_scale", pairs.to(torch.bfloat16).contiguous(), anchor)
    return _Call(aten._weight_int4pack_mm_for_cpu.default, (packed, group, scales))
