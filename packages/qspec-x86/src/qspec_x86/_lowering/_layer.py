"""Parts that all layers share: read operands for the kernel, and put the result into the graph."""

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import Node

from qspec_core.lowering import Lowering, Quantized, Weight, finish, output_shape, quantized_operand, read_weight
from qspec_core.patterns import Match, Note, Reason
from qspec_x86._depthwise import is_depthwise
from qspec_x86._lowering._options import Options
from qspec_x86._lowering._parameters import unfit_activation, unfit_output
from qspec_x86._lowering._weights import narrow_weight

__all__ = ["NARROWED", "Layer", "finish", "output_shape", "read_layer", "requantize"]


NARROWED = Note("its weight was quantized again to fewer bits, since the CPU may sum two products in 16 bits")


@dataclass(frozen=True)
class Layer:
    """Operands of a convolution or linear match, in the form that the kernel takes.

    Args:
        x: the activation.
        weight: the weight.
        bias: node of the bias; None where there is none.
        note: remark about the weight for the report; None if it is used as it was quantized.
    """

    x: Quantized
    weight: Weight
    bias: Node | None
    note: Note | None = None


def _as_it_is(weight: Weight) -> Weight:
    return weight


def read_layer(
    match: Match,
    lowering: Lowering[Options],
    arranged: Callable[[Weight], Weight] = _as_it_is,
    x: Quantized | None = None,
) -> Layer | Reason:
    """Read the operands of a match. The weight gets a coarser scale where the deployment CPU may sum in 16 bits.

    Args:
        match: the match.
        lowering: the graph.
        arranged: reorders the weight for the kernel.
        x: the activation, if the kernel does not read it as it is dequantized.
    """
    x = quantized_operand(match, "input") if x is None else x
    reason = unfit_activation(x)
    if reason is not None:
        return reason
    weight = read_weight(match, lowering)
    if isinstance(weight, Reason):
        return weight
    weight = arranged(weight)
    narrowed: Weight | None = None
    if not lowering.options.full_range and not is_depthwise(match.anchor):
        narrowed = narrow_weight(weight, x.quant_max)
    bias = match.operand("bias")
    return Layer(x, weight, bias) if narrowed is None else Layer(x, narrowed, bias, NARROWED)


def requantize(lowering: Lowering[Options], tail: Node) -> Quantized | None:
    """The quantize of all readers of `tail`, which the kernel can do; None if some read float, or another dtype."""
    quantized = lowering.requantize(tail)
    return None if quantized is None or unfit_output(quantized) is not None else quantized
