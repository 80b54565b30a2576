"""Parts that all layers share: read operands for the kernel, and put the result into the graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from qspec_core.graph import require_tensor_value, tensor_value
from qspec_core.lowering import Lowering, Quantized, Weight, quantized_operand, read_weight
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
    match: Match, lowering: Lowering[Options], arranged: Callable[[Weight], Weight] = _as_it_is
) -> Layer | Reason:
    """Read the operands of a match. The weight gets a coarser scale where the deployment CPU may sum in 16 bits.

    Args:
        match: the match.
        lowering: the graph.
        arranged: reorders the weight for the kernel.
    """
    x = quantized_operand(match, "input")
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


def output_shape(lowering: Lowering[Options], anchor: Node, source: Node) -> list[int | Node]:
    """Sizes of a linear layer's result. One symbolic size is -1; several, which may be 0, are read from its input."""
    shape: Sequence[int | torch.SymInt] = require_tensor_value(anchor).shape
    symbolic = [dim for dim, size in enumerate(shape) if not isinstance(size, int)]
    if len(symbolic) == 1 and all(size != 0 for size in shape if isinstance(size, int)):
        return [size if isinstance(size, int) else -1 for size in shape]
    sizes: list[int | Node] = [size if isinstance(size, int) else -1 for size in shape]
    for dim in symbolic:
        sizes[dim] = read = lowering.call(anchor, torch.ops.aten.sym_size.int, source, dim)
        read.meta["val"] = shape[dim]
    return sizes


def finish(lowering: Lowering[Options], tail: Node, result: Node, quantized: Quantized | None) -> None:
    """Replace `tail`, or the quantizes that read it, by `result`."""
    if quantized is None:
        result.meta = dict(tail.meta)
        tail.replace_all_uses_with(result)
    else:
        result.meta = _with_dtype(tail, torch.uint8)
        lowering.replace_quantizes(tail, result)


def _with_dtype(node: Node, dtype: torch.dtype) -> dict[str, object]:
    """Metadata of a node with another dtype."""
    value = tensor_value(node)
    changed = {"val": value.to(dtype)} if value is not None else {}
    return dict(node.meta) | changed
