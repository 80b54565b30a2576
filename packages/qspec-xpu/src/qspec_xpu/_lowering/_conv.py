"""Lowering of convolutions over one, two and three dimensions, and of transposed ones."""

from dataclasses import replace

import torch
from torch.fx import Node

from qspec_core.graph import argument, expand_integers
from qspec_core.lowering import (
    Geometry,
    Lowering,
    Weight,
    arrange_phases,
    bounds_of,
    finish,
    insert_phases,
    insert_reshape,
    output_of,
    phases_of,
    quantized_value,
)
from qspec_core.patterns import Match, Reason
from qspec_xpu._lowering._kernels import insert_qconv, insert_qconv_sum
from qspec_xpu._lowering._layer import Layer, in_float, read_layer, requantize, written_output

__all__ = ["lower_convolution", "lower_transposed"]

aten = torch.ops.aten
_HEIGHT = 2
"""Dimension of size 1 that makes a 1d convolution a 2d one: the 1d kernel has no post-op."""
_VOLUME = 3


def lower_convolution(match: Match, lowering: Lowering[None]) -> Reason | None:
    """Lower a convolution with its post-ops."""
    layer = read_layer(match, lowering)
    if isinstance(layer, Reason):
        return layer
    if match.links and match.links[0].post_op.other is not None:
        _lower_sum(match, lowering, layer)
        return None
    output, quantized = written_output(match.tail, match.links, requantize(lowering, match.tail, layer.x))
    if _dimensions(match) == _VOLUME and output.attr != "none":
        _lower_alone(match, lowering, layer)
        return None
    x, weight, geometry = _image(match, lowering, layer)
    result = insert_qconv(lowering, match.tail, x, layer.x, weight, layer.bias, geometry, output)
    finish(lowering, match.tail, _back(match, lowering, match.tail, result), quantized)
    return None


def _lower_alone(match: Match, lowering: Lowering[None], layer: Layer) -> None:
    """Lower the anchor to a float result. The operators after it stay."""
    x, weight, geometry = _image(match, lowering, layer)
    output = in_float(match.anchor)
    result = insert_qconv(lowering, match.anchor, x, layer.x, weight, layer.bias, geometry, output)
    finish(lowering, match.anchor, _back(match, lowering, match.anchor, result), None)


def _lower_sum(match: Match, lowering: Lowering[None], layer: Layer) -> None:
    """Lower a convolution and the sum after it. The kernel's sum writes integers, and takes no clamp except relu."""
    other, quantized = quantized_value(match.links[0].other), requantize(lowering, match.tail, layer.x)
    output = output_of(bounds_of(match.links[1:]), quantized)
    plain = other is not None and not isinstance(other.scale, Node) and other.dtype is layer.x.dtype
    if other is None or not plain or quantized is None or output.attr == "hardtanh":
        _lower_alone(match, lowering, layer)
        return
    x, weight, geometry = _image(match, lowering, layer)
    if _dimensions(match) == 1:
        plane = insert_reshape(lowering, match.tail, other.integers, aten.unsqueeze.default, _HEIGHT)
        other = replace(other, integers=plane)
    result = insert_qconv_sum(lowering, match.tail, x, layer.x, weight, layer.bias, geometry, output, other)
    finish(lowering, match.tail, _back(match, lowering, match.tail, result), quantized)


def _dimensions(match: Match) -> int:
    return {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: _VOLUME}[match.row.anchor]


def _image(match: Match, lowering: Lowering[None], layer: Layer) -> tuple[Node, Weight, Geometry]:
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


def _back(match: Match, lowering: Lowering[None], before: Node, result: Node) -> Node:
    """Undo `_image` for the result: (batch, channels, 1, width) -> (batch, channels, width)."""
    return lowering.call(before, aten.squeeze.dim, result, _HEIGHT) if _dimensions(match) == 1 else result


def lower_transposed(match: Match, lowering: Lowering[None]) -> Reason | None:
    """Lower a transposed convolution with its post-ops to a plain one: torch has no integer kernel for it on XPU."""
    phases, groups = phases_of(match.anchor), int(argument(match.anchor, "groups"))
    if phases is None:
        return Reason.unsupported("no plain convolution has its stride and dilation, or its padding")

    def arranged(weight: Weight) -> Weight:
        return arrange_phases(weight, phases, groups)

    layer = read_layer(match, lowering, arranged)
    if isinstance(layer, Reason):
        return layer
    before = match.tail
    output, quantized = written_output(before, match.links, requantize(lowering, before, layer.x))
    if len(phases) == _VOLUME and output.attr != "none":
        before, output, quantized = match.anchor, in_float(match.anchor), None

    def convolve(x: Node, bias: Node | None, geometry: Geometry) -> Node:
        return insert_qconv(lowering, before, x, layer.x, layer.weight, bias, geometry, output)

    result = insert_phases(lowering, match.anchor, before, layer.x.integers, layer.bias, phases, convolve)
    finish(lowering, before, result, quantized)
    return None
