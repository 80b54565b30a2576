"""Lowering of 1d, 2d and 3d convolutions."""

from dataclasses import replace

import torch
from torch.fx import Node

from qspec_core.graph import argument, expand_integers
from qspec_core.lowering import (
    Geometry,
    Lowering,
    Output,
    Weight,
    bounds_of,
    fused_output,
    insert_reshape,
    output_of,
    quantized_value,
)
from qspec_core.patterns import Match, Note, Reason
from qspec_x86._lowering._kernels import insert_qconv, insert_qconv_sum
from qspec_x86._lowering._layer import Layer, finish, read_layer, requantize
from qspec_x86._lowering._options import Form, Options
from qspec_x86._lowering._parameters import unfit_output

__all__ = ["lower_convolution"]

aten = torch.ops.aten
_HEIGHT = 2
"""Dimension of size 1 that makes a 1d convolution a 2d one: the 1d kernel has fewer post-ops."""
_VOLUME = 3


def lower_convolution(match: Match, lowering: Lowering[Options]) -> Reason | Note | None:
    """Lower a convolution with its post-ops.

    The portable form leaves a residual sum to the compiler, which fuses it at no cost; the eager form runs it in the
    kernel.
    """
    layer = read_layer(match, lowering)
    if isinstance(layer, Reason):
        return layer
    if match.links and match.links[0].post_op.other is not None:
        _lower_sum(match, lowering, layer)
        return layer.note
    output, quantized = fused_output(match.links, requantize(lowering, match.tail))
    if _dimensions(match) == _VOLUME and output.attr != "none":
        _lower_alone(match, lowering, layer)
        return layer.note
    x, weight, geometry = _image(match, lowering, layer)
    result = insert_qconv(lowering, match.tail, x, layer.x, weight, layer.bias, geometry, output)
    finish(lowering, match.tail, _back(match, lowering, match.tail, result), quantized)
    return layer.note


def _lower_alone(match: Match, lowering: Lowering[Options], layer: Layer) -> None:
    """Lower the anchor to a float result. The compiler fuses the operators after it."""
    x, weight, geometry = _image(match, lowering, layer)
    result = insert_qconv(lowering, match.anchor, x, layer.x, weight, layer.bias, geometry, Output())
    finish(lowering, match.anchor, _back(match, lowering, match.anchor, result), None)


def _lower_sum(match: Match, lowering: Lowering[Options], layer: Layer) -> None:
    other, quantized = quantized_value(match.links[0].other), requantize(lowering, match.tail)
    output = output_of(bounds_of(match.links[1:]), quantized)
    # The kernel's sum writes uint8 and takes no clamp except relu. The portable form leaves sums to the compiler.
    in_kernel = lowering.options.form is Form.EAGER and quantized is not None and output.attr != "hardtanh"
    if other is None or unfit_output(other) is not None or not in_kernel:
        _lower_alone(match, lowering, layer)
        return
    x, weight, geometry = _image(match, lowering, layer)
    if _dimensions(match) == 1:
        other = replace(
            other, integers=insert_reshape(lowering, match.tail, other.integers, aten.unsqueeze.default, _HEIGHT)
        )
    result = insert_qconv_sum(lowering, match.tail, x, layer.x, weight, layer.bias, geometry, output, other)
    finish(lowering, match.tail, _back(match, lowering, match.tail, result), quantized)


def _dimensions(match: Match) -> int:
    return {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: _VOLUME}[match.row.anchor]


def _image(match: Match, lowering: Lowering[Options], layer: Layer) -> tuple[Node, Weight, Geometry]:
    """Input, weight and geometry of a convolution; a 1d one becomes 2d."""
    count, x, weight = _dimensions(match), layer.x.integers, layer.weight
    lists = (argument(match.anchor, name) for name in ("stride", "padding", "dilation"))
    stride, padding, dilation = (expand_integers(values, count) for values in lists)
    if count == 1:
        # (batch, channels, width) -> (batch, channels, 1, width), and the weight alike
        x = insert_reshape(lowering, match.anchor, x, aten.unsqueeze.default, _HEIGHT)
        weight = Weight(weight.integers.unsqueeze(_HEIGHT), weight.scale)
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    return x, weight, Geometry(stride, padding, dilation, argument(match.anchor, "groups"))


def _back(match: Match, lowering: Lowering[Options], before: Node, result: Node) -> Node:
    """Undo `_image` for the result: (batch, channels, 1, width) -> (batch, channels, width)."""
    return lowering.call(before, aten.squeeze.dim, result, _HEIGHT) if _dimensions(match) == 1 else result
