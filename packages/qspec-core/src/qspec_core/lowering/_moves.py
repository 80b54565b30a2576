"""Lowering of operators that move integers: the dequantize before them and the quantize after them go away."""

from typing import Any

import torch
from torch.fx import Node

from qspec_core import ops
from qspec_core.graph import argument, expand_integers, replace_argument, tensor_value
from qspec_core.lowering._rows import Lowering, Quantized, quantized_operand, quantized_value
from qspec_core.lowering._weights import plain_parameters
from qspec_core.patterns import Match, Reason, ReasonCode

__all__ = ["insert_reshape", "lower_cat", "lower_max_pool2d", "lower_pad", "lower_view"]

aten = torch.ops.aten
_MAX_POOL = torch.ops.quantized.max_pool2d.default


def insert_reshape(lowering: Lowering[Any], before: Node, value: Node, target: object, *arguments: object) -> Node:
    """Insert an operator that reshapes `value`, with its metadata."""
    moved = lowering.call(before, target, value, *arguments)
    fake = tensor_value(value)
    if fake is not None and callable(target):
        moved.meta["val"] = target(fake, *arguments)
    return moved


def _unfit(match: Match, source: Quantized) -> Reason | None:
    """Reason why the operator cannot run on integers: no reader takes them, or the parameters change."""
    if source.ch_axis is not None:
        return Reason.unsupported("the scales lie along a channel, which the operator may move")
    readers = [found for found in map(quantized_value, match.tail.users) if found is not None]
    if not readers:
        return Reason(ReasonCode.NO_INTEGER_READER, "no reader takes integers")
    if any(found.parameters != source.parameters for found in readers):
        return Reason.unsupported("its output has other parameters than its input")
    return None


def _pass_on(lowering: Lowering[Any], match: Match, integers: Node, source: Quantized) -> None:
    """Replace the quantizes that read the result by `integers`. Each float reader gets a dequantize."""
    tail = match.tail
    value = tensor_value(tail)
    integers.meta = dict(tail.meta)
    if value is not None:
        integers.meta["val"] = value.to(source.dtype)
    parameters = (source.scale, source.zero_point, source.quant_min, source.quant_max, source.dtype)
    for user in list(tail.users):
        if ops.is_quantize(user):
            user.replace_all_uses_with(integers)
            lowering.module.graph.erase_node(user)
        else:
            target = ops.DEQUANTIZE_DYNAMIC if source.is_dynamic else ops.DEQUANTIZE
            dequantize = lowering.call(user, target, integers, *parameters, like=tail)
            user.replace_input_with(tail, dequantize)


def _same(node: Node) -> Node:
    return node


def lower_view(match: Match, lowering: Lowering[Any]) -> Reason | None:
    """Lower an operator that only moves elements to the same operator on integers."""
    source = quantized_operand(match, match.row.activations[0].name)
    reason = _unfit(match, source)
    if reason is not None:
        return reason
    with lowering.module.graph.inserting_before(match.tail):
        moved = lowering.module.graph.node_copy(match.anchor, _same)
    replace_argument(moved, match.row.activations[0].name, source.integers)
    _pass_on(lowering, match, moved, source)
    return None


def lower_pad(match: Match, lowering: Lowering[Any]) -> Reason | None:
    """Lower a constant pad. It pads with the integer of the value."""
    source = quantized_operand(match, "self")
    reason = _unfit(match, source)
    if reason is not None:
        return reason
    if source.is_dynamic:
        return Reason.unsupported("the integer of the padding value is known only when the model runs")
    value = argument(match.anchor, "value")
    scale, zero_point = plain_parameters(source)
    steps = round((0.0 if value is None else float(value)) / scale) + zero_point
    filler = min(max(steps, source.quant_min), source.quant_max)
    sides = list(argument(match.anchor, "pad"))
    padded = lowering.call(match.tail, aten.constant_pad_nd.default, source.integers, sides, filler)
    _pass_on(lowering, match, padded, source)
    return None


def lower_max_pool2d(match: Match, lowering: Lowering[Any]) -> Reason | None:
    """Lower max pooling. Integers have the order of the floats, and padding is never the maximum."""
    source = quantized_operand(match, "self")
    reason = _unfit(match, source)
    if reason is not None:
        return reason
    if source.dtype not in (torch.uint8, torch.int8):
        return Reason.unsupported(f"the input is {source.dtype}; the kernel takes uint8 and int8")
    anchor = match.anchor
    names = ("kernel_size", "stride", "padding", "dilation")
    sizes = {name: list(expand_integers(argument(anchor, name), 2)) for name in names}
    sizes["stride"] = sizes["stride"] or sizes["kernel_size"]
    arguments = [sizes[name] for name in names]
    pooled = lowering.call(match.tail, _MAX_POOL, source.integers, *arguments, argument(anchor, "ceil_mode"))
    _pass_on(lowering, match, pooled, source)
    return None


def lower_cat(match: Match, lowering: Lowering[Any]) -> Reason | None:
    """Lower a concatenation of tensors that all have the parameters of the result."""
    sources = [quantized_value(node) for _, node in match.inputs()]
    found = [source for source in sources if source is not None]
    if len(found) != len(argument(match.anchor, "tensors")):
        return Reason(ReasonCode.INPUT_NOT_QUANTIZED, "an input is not a quantized tensor")
    if any(source.parameters != found[0].parameters for source in found):
        return Reason.unsupported("the inputs have different parameters")
    reason = _unfit(match, found[0])
    if reason is not None:
        return reason
    joined = lowering.call(
        match.tail, aten.cat.default, [source.integers for source in found], argument(match.anchor, "dim")
    )
    _pass_on(lowering, match, joined, found[0])
    return None
