"""Kernel inputs and results in the one form that Inductor, oneDNN and torch all read alike."""

import torch
from torch.fx import Node

from qspec_core.graph import tensor_value
from qspec_core.lowering import Geometry, Lowering, Quantized, Weight, insert_reshape
from qspec_x86._lowering._options import Options

__all__ = ["hide_from_fusion", "with_clear_strides"]

aten = torch.ops.aten


def with_clear_strides(
    lowering: Lowering[Options], before: Node, x: Node, quantized: Quantized, weight: Weight, geometry: Geometry
) -> tuple[Node, Weight, Geometry]:
    """Give a convolution an input whose strides are channels-last and not contiguous too.

    The strides of one channel, and of one pixel, are both. For such an input of dynamic shape, Inductor expects a
    contiguous result, and the kernel writes a channels-last one: right values in a wrong order. One channel gets a
    second one with weights of 0. One pixel is padded before the kernel.

    Args:
        lowering: the graph.
        before: node to insert nodes before.
        x: node of the uint8 input, (batch, channels, sizes...).
        quantized: the input's parameters.
        weight: int8, (outputs, channels / groups, sizes...).
        geometry: of the convolution.
    Returns: the input, weight and geometry of a convolution with the same result.
    """
    if geometry.groups == 1 and weight.integers.shape[1] == 1:
        # (batch, 1, sizes...) -> (batch, 2, sizes...)
        x = insert_reshape(lowering, before, x, aten.expand.default, [-1, 2, *[-1] * len(geometry.stride)])
        integers = weight.integers
        weight = Weight(torch.cat([integers, torch.zeros_like(integers)], 1), weight.scale)
    value = tensor_value(x)
    is_pixel = value is not None and all(str(size) == "1" for size in value.shape[2:])
    if is_pixel and any(geometry.padding):
        x = _padded(lowering, before, x, quantized, geometry.padding)
        geometry = Geometry(geometry.stride, (0,) * len(geometry.padding), geometry.dilation, geometry.groups)
    return x, weight, geometry


def _padded(lowering: Lowering[Options], before: Node, x: Node, quantized: Quantized, padding: tuple[int, ...]) -> Node:
    """Pad with the zero point: (batch, channels, sizes...) -> (batch, channels, sizes + 2 * padding...)."""
    sides = [side for size in reversed(padding) for side in (size, size)]
    if isinstance(quantized.zero_point, Node):
        wide = lowering.call(before, aten.to.dtype, x, torch.int32)
        centred = lowering.call(before, aten.sub.Tensor, wide, quantized.zero_point)
        padded = lowering.call(before, aten.constant_pad_nd.default, centred, sides, 0)
        moved = lowering.call(before, aten.add.Tensor, padded, quantized.zero_point)
        result = lowering.call(before, aten.to.dtype, moved, torch.uint8)
    else:
        result = lowering.call(before, aten.constant_pad_nd.default, x, sides, int(quantized.zero_point or 0))
    value = tensor_value(x)
    if value is not None:  # computed on the fake tensor, the pad would fix its symbolic batch to the example's
        shape = [size + 2 * side for size, side in zip(value.shape[2:], padding, strict=True)]
        result.meta["val"] = value.new_empty((*value.shape[:2], *shape))
    return result


def hide_from_fusion(lowering: Lowering[Options], before: Node, result: Node) -> Node:
    """Stop Inductor from fusing the operators after a float result into its kernel.

    Inductor fuses activations into every quantized convolution, also into 3d ones, whose kernel has none and raises on
    each call. Its patterns look at neighbours only. The two views cost nothing: (...) -> (1, ...) -> (...).
    """
    return lowering.call(before, aten.squeeze.dim, lowering.call(before, aten.unsqueeze.default, result, 0), 0)
