"""Scales that XNNPACK has no kernel for, changed where the result stays the same."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qspec_core import ops
from qspec_core.graph import add_constant, argument, constant_value, replace_argument
from qspec_core.lowering import Lowering, Quantized, quantized_value
from qspec_core.patterns import Match, Role

__all__ = ["fit_scales"]

_LARGEST_BIAS = 2.0**30
"""Largest bias as an integer: the kernels add it to products in int32."""
_LARGEST_RATIO = 128.0
"""Largest ratio of input to output scale. XNNPACK creates no kernel from 256 on, for sums from 2**8 on."""
_SMALLEST_RATIO = 2.0**-9
"""Smallest ratio of an operand's scale to that of the output; XNNPACK creates no sum below 2**-10."""


def fit_scales(module: GraphModule, matches: Iterable[Match]) -> None:
    """Change scales that XNNPACK has no kernel for, in place.

    - A weight with one scale in dynamic mode gets equal scales for its channels.
    - A channel whose bias would overflow int32 gets a larger weight scale. Its weights are so small, compared with its
      bias, that they hardly count.
    - A result with a far smaller scale than its input is quantized with a larger one first. One step of the kernel's
      sum is larger than the whole range of the result, so that no precision is lost.
    - An operand of a sum or product with a far smaller scale than the result is quantized with a larger one first.

    Args:
        module: a converted graph module in canonical form that the caller owns.
        matches: its rows.
    Cost: O(matches + integers of the weights that change).
    """
    context: Lowering[None] = Lowering(module, "any", None)
    for match in matches:
        inputs = [
            found for _, node in match.inputs(Role.ACTIVATION, Role.ACTIVATIONS) if (found := quantized_value(node))
        ]
        if any(found.is_dynamic for found in inputs):
            _scale_by_channel(module, match)
            continue
        out = context.requantize(match.tail)
        if out is None or not isinstance(out.scale, float) or not all(isinstance(each.scale, float) for each in inputs):
            continue
        if match.row.has_weight:
            _fit_layer(module, match, inputs[0], out)
        elif match.row.flow is not match.row.flow.SHARES:
            _fit_operands(module, match, inputs, out)


def _scale_by_channel(module: GraphModule, match: Match) -> None:
    """Write a weight with one scale as one with equal scales: the dynamic kernels take no other."""
    for operand, node in match.inputs(Role.WEIGHT):
        if node.target is not ops.DEQUANTIZE or operand.ch_axis is None:
            continue
        channels = node.meta["val"].shape[operand.ch_axis]
        scales = torch.full((channels,), float(argument(node, "scale")))
        zeros = torch.full((channels,), int(argument(node, "zero_point")), dtype=torch.int64)
        limits = [argument(node, name) for name in ("quant_min", "quant_max", "dtype")]
        constants = [add_constant(module, name, value, node) for name, value in (("scale", scales), ("zero", zeros))]
        node.target = ops.DEQUANTIZE_PER_CHANNEL
        node.args, node.kwargs = (argument(node, "input"), *constants, operand.ch_axis, *limits), {}


def _fit_layer(module: GraphModule, match: Match, source: Quantized, out: Quantized) -> None:
    (_, node), *_ = match.inputs(Role.WEIGHT)
    weight = quantized_value(node)
    if weight is None or weight.group_size is not None:
        return
    scales = _scales(module, weight)
    step = _number(source.scale)
    bias = next((constant_value(module, node) for _, node in match.inputs(Role.BIAS)), None)
    if bias is not None and weight.ch_axis is not None and bias.numel() == scales.numel():
        least = bias.detach().abs() / (_LARGEST_BIAS * step)
        if bool((scales < least).any()):
            scales = torch.maximum(scales, least)
            _rescale(module, weight, scales)
    least_out = step * float(scales.max()) / _LARGEST_RATIO
    if _number(out.scale) < least_out / 2:
        _quantize_before(module, match.tail, out, least_out)


def _number(value: object) -> float:
    """A scale or zero point of a static tensor, which is a number: `fit_scales` looks at no others."""
    return float(value) if isinstance(value, int | float) else math.nan


def _scales(module: GraphModule, weight: Quantized) -> Tensor:
    if isinstance(weight.scale, float):
        return torch.tensor([weight.scale])
    found = constant_value(module, weight.scale)
    return torch.ones(1) if found is None else found.detach()


def _rescale(module: GraphModule, weight: Quantized, scales: Tensor) -> None:
    """Give a weight other scales, one for each output channel, and the integers that belong to them."""
    integers, before = constant_value(module, weight.integers), constant_value(module, weight.scale)
    if integers is None or before is None or weight.ch_axis is None:
        return
    shape = [1] * integers.dim()
    shape[weight.ch_axis] = -1
    # (channels,) -> (1, ..., channels, ..., 1)
    ratio = (before / scales).reshape(shape)
    limits = (weight.quant_min, weight.quant_max)
    fitted = torch.where(ratio == 1, integers, (integers * ratio).round().clamp(*limits)).to(integers.dtype)
    replace_argument(weight.node, "input", add_constant(module, "weight", fitted, weight.node))
    replace_argument(weight.node, "scales", add_constant(module, "scale", scales, weight.node))


def _fit_operands(module: GraphModule, match: Match, inputs: Iterable[Quantized], out: Quantized) -> None:
    step = _number(out.scale)
    largest = max((_number(found.scale) for found in inputs), default=step)
    if largest > step * _LARGEST_RATIO:
        step = largest / _LARGEST_RATIO
        _quantize_before(module, match.tail, out, step)
    for found in inputs:
        if _number(found.scale) < step * _SMALLEST_RATIO:
            _quantize_before(module, found.node, found, step * _SMALLEST_RATIO)


def _quantize_before(module: GraphModule, node: Node, known: Quantized, scale: float) -> None:
    """Quantize a value with a larger scale, over a range that holds that of its quantize, before its readers."""
    share = _number(known.scale) / scale
    zero_point = _number(known.zero_point)
    zero_point = round(known.quant_min + (zero_point - known.quant_min) * share)
    parameters = (scale, zero_point, known.quant_min, known.quant_max, known.dtype)
    readers = list(node.users)
    with module.graph.inserting_after(node):
        integers = module.graph.call_function(ops.QUANTIZE, (node, *parameters))
    integers.meta = {**node.meta, "val": node.meta["val"].to(known.dtype)}
    with module.graph.inserting_after(integers):
        other = {} if node.meta["val"].dtype is torch.float32 else {"out_dtype": node.meta["val"].dtype}
        found = module.graph.call_function(ops.DEQUANTIZE, (integers, *parameters), other)
    found.meta = dict(node.meta)
    for reader in readers:
        reader.replace_input_with(node, found)
