"""Parts that all layers share: operands as the kernel takes them, and the description of its result."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from qspec_core.graph import argument, constant_value, require_tensor_value, tensor_value
from qspec_core.lowering import (
    Lowering,
    Output,
    Quantized,
    Weight,
    fused_output,
    quantized_operand,
    read_weight,
)
from qspec_core.patterns import Link, Match, Reason

__all__ = ["Layer", "in_float", "read_layer", "requantize", "written_output"]

aten = torch.ops.aten
_EIGHT_BITS = (torch.int8, torch.uint8)


@dataclass(frozen=True)
class Layer:
    """Operands of a convolution or linear match, in the form that the kernel takes.

    Args:
        x: the activation.
        weight: the weight.
        bias: node of the bias, in float32; None where there is none.
    """

    x: Quantized
    weight: Weight
    bias: Node | None


def _as_it_is(weight: Weight) -> Weight:
    return weight


def _unfit(quantized: Quantized) -> Reason | None:
    """Reason why the kernels cannot read an activation with these parameters; None if they can."""
    several = quantized.ch_axis is not None or quantized.by_token or quantized.group_size is not None
    if several or (isinstance(quantized.scale, Node) and not quantized.is_dynamic):
        return Reason.unsupported("an activation has several scales; the kernels take one")
    if quantized.dtype not in _EIGHT_BITS:
        return Reason.unsupported(f"an activation is {quantized.dtype}; the kernels take int8 and uint8")
    return None


def read_layer(
    match: Match, lowering: Lowering[None], arranged: Callable[[Weight], Weight] = _as_it_is
) -> Layer | Reason:
    """Read the operands of a match, or give the reason why a kernel cannot take them.

    Args:
        match: the match.
        lowering: the graph.
        arranged: reorders the weight for the kernel.
    """
    x = quantized_operand(match, "input")
    reason = _unfit(x)
    if reason is not None:
        return reason
    weight = read_weight(match, lowering)
    if isinstance(weight, Reason):
        return weight
    return Layer(x, arranged(weight), _float32(lowering, match.anchor, match.operand("bias")))


def _float32(lowering: Lowering[None], before: Node, bias: Node | None) -> Node | None:
    """The bias in float32: the convolution kernel reads its storage as that."""
    value = tensor_value(bias)
    if bias is None or (value is not None and value.dtype is torch.float32):
        return bias
    known = constant_value(lowering.module, bias)
    if known is not None:
        return lowering.constant("_xpu_bias", known.detach().to(torch.float32), before)
    return lowering.call(before, aten.to.dtype, bias, torch.float32)


def requantize(lowering: Lowering[None], tail: Node, x: Quantized) -> Quantized | None:
    """The quantize of all readers of `tail`, if the kernel can do it; None if some read float.

    A result in integers has the dtype of the activation, whatever dtype the call names.
    """
    found = lowering.requantize(tail)
    fits = found is not None and not found.is_dynamic and _unfit(found) is None and found.dtype is x.dtype
    return found if fits else None


def in_float(node: Node, output: Output | None = None) -> Output:
    """Describe a result in the dtype of the float graph."""
    return replace(output if output is not None else Output(), dtype=require_tensor_value(node).dtype)


def written_output(tail: Node, links: tuple[Link, ...], quantized: Quantized | None) -> tuple[Output, Quantized | None]:
    """Describe the result of a kernel with a chain of post-ops of one tensor, and name the quantize that it replaces.

    Args:
        tail: node of the result, for its dtype.
        links: one curve, or clamps.
        quantized: from `requantize`.
    """
    output, replaced = fused_output(links, quantized)
    output = in_float(tail, output) if replaced is None else output
    for link in links:
        if output.attr == "leaky_relu":
            output = replace(output, scalars=(float(argument(link.node, "negative_slope")),))
        if output.attr == "gelu":
            output = replace(output, algorithm=argument(link.node, "approximate"))
    return output, replaced
