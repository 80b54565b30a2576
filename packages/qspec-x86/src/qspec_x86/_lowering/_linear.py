"""Lowering of linear layers to the convolution kernel."""

from dataclasses import replace
from math import prod

import torch
from torch.fx import Node

from qspec_core.graph import tensor_value
from qspec_core.lowering import Geometry, Lowering, Output, Quantized, Weight, fused_output, quantized_operand
from qspec_core.patterns import Match, Note, Reason
from qspec_x86._lowering._kernels import insert_qconv
from qspec_x86._lowering._layer import Layer, finish, output_shape, read_layer, requantize
from qspec_x86._lowering._loops import insert_product
from qspec_x86._lowering._options import Options
from qspec_x86._lowering._tokens import has_one_row, kernel_form, one_row, rescale_rows, unfit_tokens, unsigned_rows

__all__ = ["lower_linear"]

aten = torch.ops.aten
_POINTWISE = Geometry((1, 1), (0, 0), (1, 1), 1)


def lower_linear(match: Match, lowering: Lowering[Options]) -> Reason | Note | None:
    """Lower a linear layer with its post-ops to a 1x1 convolution over (1, features, rows, 1), channels-last.

    The kernel applies bias and post-ops, except where each row of the activation has a range of its own, and in the
    body of a loop, where an integer product takes its place.
    """
    source = quantized_operand(match, "input")
    reason = unfit_tokens(source) if source.by_token else None
    layer = reason or read_layer(match, lowering, x=kernel_form(source) if source.by_token else source)
    if isinstance(layer, Reason):
        return layer
    if source.by_token:
        _lower_rows(match, lowering, layer, source)
        return layer.note
    if lowering.in_loop:
        finish(lowering, match.anchor, insert_product(lowering, match.anchor, layer), None)
        return layer.note
    output, quantized = fused_output(match.links, requantize(lowering, match.tail))
    result = _products(match, lowering, layer, match.tail, output)
    finish(lowering, match.tail, result, quantized)
    return layer.note


def _lower_rows(match: Match, lowering: Lowering[Options], layer: Layer, source: Quantized) -> None:
    """Lower a layer whose activation has a range for each row. Post-ops stay as they are, for the compiler to fuse."""
    integers = unsigned_rows(lowering, source)
    if has_one_row(match.operand("input")) and not lowering.in_loop:
        layer = replace(layer, x=replace(one_row(lowering, source), integers=integers))
        output, quantized = fused_output(match.links, requantize(lowering, match.tail))
        finish(lowering, match.tail, _products(match, lowering, layer, match.tail, output), quantized)
        return
    plain = replace(layer, x=replace(layer.x, integers=integers), bias=None)
    if lowering.in_loop:
        result = insert_product(lowering, match.anchor, plain)
    else:
        result = _products(match, lowering, plain, match.anchor, Output())
    rescaled = rescale_rows(lowering, match.anchor, result, source, layer.weight, layer.bias)
    finish(lowering, match.anchor, rescaled, None)


def _products(match: Match, lowering: Lowering[Options], layer: Layer, before: Node, output: Output) -> Node:
    """Insert the kernel, and return the node of its result in the layer's shape."""
    features = layer.weight.integers.shape[1]
    value = tensor_value(layer.x.integers)
    value = tensor_value(match.operand("input")) if value is None else value
    # (..., features) -> (1, rows, 1, features) -> (1, features, rows, 1), a view that is channels-last
    rows = lowering.call(before, aten.reshape.default, layer.x.integers, [1, -1, 1, features])
    pixels = lowering.call(before, aten.permute.default, rows, [0, 3, 1, 2])
    if value is not None:
        rows.meta["val"] = value.new_empty((1, prod(value.shape[:-1]), 1, features), dtype=torch.uint8)
        pixels.meta["val"] = rows.meta["val"].permute(0, 3, 1, 2)
    # (outputs, features) -> (outputs, features, 1, 1)
    kernel = Weight(layer.weight.integers[:, :, None, None], layer.weight.scale)
    result = insert_qconv(lowering, before, pixels, layer.x, kernel, layer.bias, _POINTWISE, output)
    # (1, outputs, rows, 1) -> (1, rows, 1, outputs) -> (..., outputs)
    back = lowering.call(before, aten.permute.default, result, [0, 2, 3, 1])
    shape = output_shape(lowering, match.anchor, layer.x.integers)
    return lowering.call(before, aten.reshape.default, back, shape)
