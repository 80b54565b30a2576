"""Lowering of linear layers to the convolution kernel."""

from math import prod

import torch

from qspec_core.graph import tensor_value
from qspec_core.lowering import Geometry, Lowering, Weight, fused_output
from qspec_core.patterns import Match, Note, Reason
from qspec_x86._lowering._kernels import insert_qconv
from qspec_x86._lowering._layer import finish, output_shape, read_layer, requantize
from qspec_x86._lowering._options import Options

__all__ = ["lower_linear"]

aten = torch.ops.aten
_POINTWISE = Geometry((1, 1), (0, 0), (1, 1), 1)


def lower_linear(match: Match, lowering: Lowering[Options]) -> Reason | Note | None:
    """Lower a linear layer with its post-ops to a 1x1 convolution over (1, features, rows, 1), channels-last."""
    layer = read_layer(match, lowering)
    if isinstance(layer, Reason):
        return layer
    tail = match.tail
    features = layer.weight.integers.shape[1]
    value = tensor_value(layer.x.integers)
    value = tensor_value(match.operand("input")) if value is None else value
    # (..., features) -> (1, rows, 1, features) -> (1, features, rows, 1), a view that is channels-last
    rows = lowering.call(tail, aten.reshape.default, layer.x.integers, [1, -1, 1, features])
    pixels = lowering.call(tail, aten.permute.default, rows, [0, 3, 1, 2])
    if value is not None:
        rows.meta["val"] = value.new_empty((1, prod(value.shape[:-1]), 1, features), dtype=torch.uint8)
        pixels.meta["val"] = rows.meta["val"].permute(0, 3, 1, 2)
    # (outputs, features) -> (outputs, features, 1, 1)
    kernel = Weight(layer.weight.integers[:, :, None, None], layer.weight.scale)
    output, quantized = fused_output(match.links, requantize(lowering, tail))
    result = insert_qconv(lowering, tail, pixels, layer.x, kernel, layer.bias, _POINTWISE, output)
    # (1, outputs, rows, 1) -> (1, rows, 1, outputs) -> (..., outputs)
    back = lowering.call(tail, aten.permute.default, result, [0, 2, 3, 1])
    shaped = lowering.call(tail, aten.reshape.default, back, output_shape(lowering, match.anchor, layer.x.integers))
    finish(lowering, tail, shaped, quantized)
    return layer.note
