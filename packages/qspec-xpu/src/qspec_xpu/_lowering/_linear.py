"""Lowering of linear layers, with a sum of a float tensor in the kernel."""

import torch

from qspec_core.lowering import Lowering, finish, output_shape
from qspec_core.patterns import Match, Reason
from qspec_xpu._lowering._kernels import insert_qlinear
from qspec_xpu._lowering._layer import read_layer, requantize, written_output

__all__ = ["lower_linear"]

aten = torch.ops.aten


def lower_linear(match: Match, lowering: Lowering[None]) -> Reason | None:
    """Lower a linear layer with its post-ops. The kernel takes matrices."""
    layer = read_layer(match, lowering)
    if isinstance(layer, Reason):
        return layer
    tail, links, other = match.tail, match.links, None
    outputs, features = layer.weight.integers.shape
    if links and links[0].post_op.other is not None:
        # (..., outputs) -> (rows, outputs)
        other, links = lowering.call(tail, aten.reshape.default, links[0].other, [-1, outputs]), links[1:]
    output, quantized = written_output(tail, links, requantize(lowering, tail, layer.x))
    if other is not None and output.attr not in ("none", "relu"):  # with a sum, the kernel has no clamp except relu
        output, quantized = written_output(tail, links, None)
    # (..., features) -> (rows, features)
    rows = lowering.call(tail, aten.reshape.default, layer.x.integers, [-1, features])
    result = insert_qlinear(lowering, tail, rows, layer.x, layer.weight, layer.bias, output, other)
    # (rows, outputs) -> (..., outputs)
    shape = output_shape(lowering, match.anchor, layer.x.integers)
    shaped = lowering.call(tail, aten.reshape.default, result, shape)
    finish(lowering, tail, shaped, quantized)
    return None
