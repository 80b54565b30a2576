"""The integer kernel that is faster than float on every x86 CPU: oneDNN's u8 by s8 convolution, with and without a sum.

Linear layers use it too, as 1x1 convolutions over their rows: `onednn.qlinear_pointwise` took 1.3 to 6 times as long on
AVX2, and torch.compile takes it only while freezing is switched on for the whole process.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qspec_core.graph import require_tensor_value, tensor_value
from qspec_core.lowering import Geometry, Lowering, Output, Quantized, Weight, plain_parameters
from qspec_x86._lowering._layouts import hide_from_fusion, with_clear_strides
from qspec_x86._lowering._options import Options
from qspec_x86._torch import size_hint

__all__ = [
    "BLOCK",
    "FOUR_BITS",
    "PACK_FOUR_BITS",
    "PREPACK",
    "QCONV",
    "QCONV_DYNAMIC",
    "fits_four_bits",
    "insert_qconv",
    "insert_qconv_sum",
    "qconv_sum",
]

_onednn = torch.ops.onednn
PREPACK = _onednn.qconv_prepack.default
PACK_FOUR_BITS = torch.ops.aten._convert_weight_to_int4pack_for_cpu.default
QCONV = _onednn.qconv_pointwise.default
QCONV_DYNAMIC = _onednn.qconv_pointwise.tensor
_SUM = _onednn.qconv2d_pointwise.binary
_MIDDLE = 128
_VOLUME = 3
FOUR_BITS = 16
"""Number of integers of the 4-bit kernel."""
BLOCK = 16
"""Input features that the 8-bit weight-only kernel reads at a time, and outputs that the 4-bit one packs."""
_GROUPS = (32, 64, 128, 256)


def fits_four_bits(outputs: int, features: int, group: int) -> bool:
    """Whether the 4-bit kernel takes this weight with one scale for each `group` input features."""
    return group in _GROUPS and features % group == 0 and outputs % BLOCK == 0


def _shape(x: Node) -> list[int] | None:
    """Sizes of a tensor, with those of the example for symbolic ones; None if one is unknown."""
    value = tensor_value(x)
    sizes = [size_hint(size) for size in value.shape] if value is not None else [None]
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(sizes) else None


def _packed(
    lowering: Lowering[Options], before: Node, x: Node, quantized: Quantized, weight: Weight, geometry: Geometry
) -> tuple[Any, ...]:
    """Arguments of the kernel up to the weight's zero points: the input, its parameters, the packed weight.

    A weight that was packed for another input shape or zero point is reordered on every call: a linear layer of 768 by
    3072 over 128 rows then takes 7 ms, not 1.4. For a symbolic size, the example's is the best guess. For a dynamic
    zero point, any value except 0 is good: packed for 0, one row of 768 features took ten times as long.
    """
    if quantized.is_dynamic:
        given, assumed = (quantized.scale, quantized.zero_point), (1.0, _MIDDLE)
    else:
        given = assumed = plain_parameters(quantized)
    integers = lowering.constant("_x86_weight", weight.integers, before)
    scales = lowering.constant("_x86_scale", weight.scale, before)
    zeros = lowering.constant("_x86_zero", torch.zeros(weight.scale.numel(), dtype=torch.int64), before)
    packed = lowering.call(before, PREPACK, integers, scales, *assumed, *geometry.arguments, _shape(x))
    packed.meta["val"] = require_tensor_value(integers)
    return x, *given, packed, scales, zeros


def insert_qconv(
    lowering: Lowering[Options],
    before: Node,
    x: Node,
    quantized: Quantized,
    weight: Weight,
    bias: Node | None,
    geometry: Geometry,
    output: Output,
) -> Node:
    """Insert a convolution in integers, whose weight a node of the graph packs.

    Args:
        lowering: the graph.
        before: node to insert it before.
        x: node of the uint8 input, (batch, channels, height, width).
        quantized: the input's parameters.
        weight: int8, (outputs, channels / groups, height, width), symmetric.
        bias: float32, (outputs,), or None.
        geometry: of the convolution.
        output: description of the result.
    Returns: node of the result. The caller sets its metadata.
    """
    x, weight, geometry = with_clear_strides(lowering, before, x, quantized, weight, geometry)
    operands = _packed(lowering, before, x, quantized, weight, geometry)
    result = (output.scale, output.zero_point, output.dtype, output.attr, list(output.scalars), "")
    kernel = QCONV_DYNAMIC if quantized.is_dynamic else QCONV
    called = lowering.call(before, kernel, *operands, bias, *geometry.arguments, *result)
    is_fusible = output.dtype is not torch.float32 or len(geometry.stride) < _VOLUME
    return called if is_fusible else hide_from_fusion(lowering, before, called)


def insert_qconv_sum(
    lowering: Lowering[Options],
    before: Node,
    x: Node,
    quantized: Quantized,
    weight: Weight,
    bias: Node | None,
    geometry: Geometry,
    output: Output,
    other: Quantized,
) -> Node:
    """Insert `qconv_sum`: a convolution in integers that adds a uint8 tensor before it writes uint8.

    Args: those of `insert_qconv`, and `other`, the tensor to add.
    Returns: the node of the sum.
    """
    x, weight, geometry = with_clear_strides(lowering, before, x, quantized, weight, geometry)
    operands = _packed(lowering, before, x, quantized, weight, geometry)
    summed = (other.integers, *plain_parameters(other))
    # Both must have one reader: in graphs of other tools, or exported twice, readers share a dequantize.
    is_read_once = len(other.integers.users) == 1 and len(other.node.users) == 1
    may_overwrite = other.integers.target in (QCONV, qconv_sum) and is_read_once
    result = (output.scale, output.zero_point, output.attr == "relu", *summed, may_overwrite)
    return lowering.call(before, qconv_sum, *operands, bias, *geometry.arguments, *result)


def qconv_sum(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    packed: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    scale: float,
    zero_point: int,
    relu: bool,
    other: Tensor,
    other_scale: float,
    other_zero_point: int,
    may_overwrite: bool,
) -> Tensor:
    """Convolution plus a uint8 tensor, clamped at zero if `relu`, in uint8.

    The kernel adds into the storage of `other` and returns it, so it gets a copy unless nothing else reads `other`.
    While torch.compile traces, float operators compute the sum: they fuse, and a mutating kernel would not compile.

    Args: those of `onednn.qconv_pointwise`; `other`, uint8, of the result's shape; `may_overwrite`, whether
        nothing else reads `other`.
    Returns: uint8, the convolution's shape, with `scale` and `zero_point`.
    """
    geometry = (stride, padding, dilation, groups)
    operands = (x, x_scale, x_zero_point, packed, w_scale, w_zero_point)
    if torch.compiler.is_compiling():
        y = QCONV(*operands, bias, *geometry, 1.0, 0, torch.float32, "none", [None], "")
        y = y + (other.to(torch.float32) - other_zero_point) * other_scale
        lowest = zero_point if relu else 0
        result: Tensor = torch.clamp(torch.round(y * (1.0 / scale)) + zero_point, max(lowest, 0), 255).to(torch.uint8)
        return result
    layout = torch.channels_last
    accumulator = other.contiguous(memory_format=layout) if may_overwrite else other.clone(memory_format=layout)
    summed = (scale, zero_point, torch.uint8, other_scale, other_zero_point, "sum", 1.0)
    result = _SUM(*operands, accumulator, bias, *geometry, *summed, "relu" if relu else "none", [None], "")
    return result
