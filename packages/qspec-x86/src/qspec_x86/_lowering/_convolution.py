"""Convolution and linear, through the one kernel."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.fx import Node

from qspec_core.lowering import Lowering, Quantized, quantized_operand, quantized_value
from qspec_core.patterns import Match, Reason, argument
from qspec_x86._bounds import Bounds, bounds_of, is_clamp, output_of
from qspec_x86._depthwise import is_depthwise
from qspec_x86._kernels import Geometry, insert_qconv, insert_qconv_sum
from qspec_x86._options import Form, options_of
from qspec_x86._parameters import unfit_activation
from qspec_x86._weights import Weight, narrow_weight, read_weight

__all__ = ["lower_conv2d", "lower_linear"]

aten = torch.ops.aten
_POINTWISE = Geometry((1, 1), (0, 0), (1, 1), 1)


@dataclass(frozen=True)
class _Layer:
    """The operands of a convolution or linear match, as its kernel takes them."""

    x: Quantized
    weight: Weight
    bias: Node | None


def _read_layer(match: Match, lowering: Lowering) -> _Layer | Reason:
    """The operands of a match; the weight given a coarser scale where the deployment CPU may sum in 16 bits."""
    x = quantized_operand(match, "input")
    reason = unfit_activation(x)
    if reason is not None:
        return reason
    weight = read_weight(match, lowering)
    if isinstance(weight, Reason):
        return weight
    options = options_of(lowering)
    if not options.full_range and not is_depthwise(match.anchor):
        narrowed = narrow_weight(weight, x.quant_max)
        if narrowed is not None:
            options.narrowed.append(match.anchor.name)
            weight = narrowed
    return _Layer(x, weight, match.operand("bias"))


def _requantize(lowering: Lowering, tail: Node) -> Quantized | None:
    """The quantize that the kernel may do for all readers of `tail`; None if they take the float, or another dtype."""
    quantized = lowering.requantize(tail)
    return None if quantized is None or unfit_activation(quantized) is not None else quantized


def _pair(values: int | list[int]) -> tuple[int, ...]:
    items = [values] if isinstance(values, int) else list(values)
    return tuple(items * 2 if len(items) == 1 else items)


def _with_dtype(node: Node, dtype: torch.dtype) -> dict[str, object]:
    """Metadata of a node whose value has another dtype."""
    value = node.meta.get("val")
    changed = {"val": value.to(dtype)} if isinstance(value, Tensor) else {}
    return dict(node.meta) | changed


def _finish(lowering: Lowering, tail: Node, result: Node, quantized: Quantized | None) -> None:
    """Put `result` in the place of `tail`, or of the quantizes that read it."""
    if quantized is None:
        result.meta = dict(tail.meta)
        tail.replace_all_uses_with(result)
    else:
        result.meta = _with_dtype(tail, torch.uint8)
        lowering.replace_quantizes(tail, result)


def lower_conv2d(match: Match, lowering: Lowering) -> Reason | None:
    """Lower a convolution with its clamp, or with its residual sum.

    The portable form leaves the sum to the compiler, which fuses it at no cost; the eager form puts it into the kernel.
    """
    anchor = match.anchor
    layer = _read_layer(match, lowering)
    if isinstance(layer, Reason):
        return layer
    stride, padding, dilation = (_pair(argument(anchor, name)) for name in ("stride", "padding", "dilation"))
    geometry = Geometry(stride, padding, dilation, argument(anchor, "groups"))
    operands = (layer.x.integers, layer.x, layer.weight, layer.bias, geometry)
    if all(map(is_clamp, match.links)):
        quantized = _requantize(lowering, match.tail)
        result = insert_qconv(lowering, match.tail, *operands, output_of(bounds_of(match.links), quantized))
        _finish(lowering, match.tail, result, quantized)
        return None
    other, quantized = quantized_value(match.links[0].other), _requantize(lowering, match.tail)
    output = output_of(bounds_of(match.links[1:]), quantized)
    # The kernel's sum writes uint8 and takes no clamp but relu. The portable form leaves every sum to the compiler.
    in_kernel = options_of(lowering).form is Form.EAGER and quantized is not None and output.attr != "hardtanh"
    if other is None or unfit_activation(other) is not None or not in_kernel:
        _finish(lowering, anchor, insert_qconv(lowering, anchor, *operands, output_of(Bounds(), None)), None)
        return None
    result = insert_qconv_sum(lowering, match.tail, *operands, output, other)
    _finish(lowering, match.tail, result, quantized)
    return None


def lower_linear(match: Match, lowering: Lowering) -> Reason | None:
    """Lower a linear layer with its clamp, as a 1x1 convolution over (1, features, rows, 1), which is channels-last as
    it stands.
    """
    layer = _read_layer(match, lowering)
    if isinstance(layer, Reason):
        return layer
    tail, quantized = match.tail, _requantize(lowering, match.tail)
    features = layer.weight.integers.shape[1]
    value = layer.x.integers.meta.get("val", match.operand("input").meta.get("val"))
    rows = lowering.call(tail, aten.reshape.default, layer.x.integers, [1, -1, 1, features])
    pixels = lowering.call(tail, aten.permute.default, rows, [0, 3, 1, 2])
    if isinstance(value, Tensor):
        rows.meta["val"] = value.new_empty((1, prod(value.shape[:-1]), 1, features), dtype=torch.uint8)
        pixels.meta["val"] = rows.meta["val"].permute(0, 3, 1, 2)
    kernel = Weight(layer.weight.integers[:, :, None, None], layer.weight.scale)
    output = output_of(bounds_of(match.links), quantized)
    result = insert_qconv(lowering, tail, pixels, layer.x, kernel, layer.bias, _POINTWISE, output)
    back = lowering.call(tail, aten.permute.default, result, [0, 2, 3, 1])
    shaped = lowering.call(tail, aten.reshape.default, back, _output_shape(lowering, match))
    _finish(lowering, tail, shaped, quantized)
    return None


def _output_shape(lowering: Lowering, match: Match) -> list[int | Node]:
    """Sizes of the result: numbers, one -1, and nodes that read what else is symbolic from the input."""
    source = match.operand("input")
    sizes: list[int | Node] = []
    for dim, size in enumerate(match.anchor.meta["val"].shape):
        if isinstance(size, int):
            sizes.append(size)
        elif -1 not in sizes:
            sizes.append(-1)
        else:
            integers = quantized_operand(match, "input").integers
            read = lowering.call(match.tail, aten.sym_size.int, integers, dim)
            read.meta["val"] = source.meta["val"].shape[dim]
            sizes.append(read)
    return sizes
