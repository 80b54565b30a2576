"""Linear layers, through the convolution kernel."""

from math import prod

import torch
from torch import Tensor

from qspec_core.lowering import Lowering
from qspec_core.patterns import Match, Note, Reason
from qspec_x86._lowering._bounds import fused_output
from qspec_x86._lowering._kernels import Geometry, insert_qconv
from qspec_x86._lowering._layer import finish, output_shape, read_layer, requantize
from qspec_x86._lowering._options import Options
from qspec_x86._lowering._weights import Weight

__all__ = ["lower_linear"]

aten = torch.ops.aten
_POINTWISE = Geometry((1, 1), (0, 0), (1, 1), 1)


def lower_linear(match: Match, lowering: Lowering[Options]) -> Reason | Note | None:
    """Lower a linear layer with its clamp or curve, as a 1x1 convolution over (1, features, rows, 1), which is
    channels-last as it stands.
    """
    layer = read_layer(match, lowering)
    if isinstance(layer, Reason):
        return layer
    tail = match.tail
    features = layer.weight.integers.shape[1]
    value = layer.x.integers.meta.get("val", match.operand("input").meta.get("val"))
    rows = lowering.call(tail, aten.reshape.default, layer.x.integers, [1, -1, 1, features])
    pixels = lowering.call(tail, aten.permute.default, rows, [0, 3, 1, 2])
    if isinstance(value, Tensor):
        rows.meta["val"] = value.new_empty((1, prod(value.shape[:-1]), 1, features), dtype=torch.uint8)
        pixels.meta["val"] = rows.meta["val"].permute(0, 3, 1, 2)
    kernel = Weight(layer.weight.integers[:, :, None, None], layer.weight.scale)
    output, quantized = fused_output(match.links, requantize(lowering, tail))
    result = insert_qconv(lowering, tail, pixels, layer.x, kernel, layer.bias, _POINTWISE, output)
    back = lowering.call(tail, aten.permute.default, result, [0, 2, 3, 1])
    shaped = lowering.call(tail, aten.reshape.default, back, output_shape(lowering, match.anchor, layer.x.integers))
    finish(lowering, tail, shaped, quantized)
    return layer.note
