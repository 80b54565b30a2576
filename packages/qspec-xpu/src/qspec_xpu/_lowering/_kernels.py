"""The integer kernels of torch's XPU build, with what each asks of its arguments.

Nothing is packed: torch's XPU prepacking operators return the convolution's weight as it is, and a transposed view of
the linear weight. Sources in torch, under aten/src/ATen/native/mkldnn/xpu: qconv.cpp, qlinear.cpp, detail/QConv.cpp,
detail/QMatmul.cpp, detail/Attr.h, Blas.cpp.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qspec_core.graph import tensor_value
from qspec_core.lowering import Geometry, Lowering, Output, Quantized, Weight, plain_parameters

__all__ = [
    "QCONV",
    "QCONV_DYNAMIC",
    "QCONV_SUM",
    "QLINEAR",
    "QLINEAR_ADD",
    "QLINEAR_ADD_DYNAMIC",
    "QLINEAR_DYNAMIC",
    "WEIGHT_ONLY_4",
    "WEIGHT_ONLY_8",
    "insert_qconv",
    "insert_qconv_sum",
    "insert_qlinear",
    "qconv_sum",
]

aten = torch.ops.aten
_onednn = torch.ops.onednn
QCONV = _onednn.qconv_pointwise.default
QCONV_DYNAMIC = _onednn.qconv_pointwise.tensor
QCONV_SUM = _onednn.qconv2d_pointwise.binary
QLINEAR = _onednn.qlinear_pointwise.default
QLINEAR_DYNAMIC = _onednn.qlinear_pointwise.tensor
QLINEAR_ADD = _onednn.qlinear_pointwise.binary
QLINEAR_ADD_DYNAMIC = _onednn.qlinear_pointwise.binary_tensor
WEIGHT_ONLY_8 = aten._weight_int8pack_mm.default
WEIGHT_ONLY_4 = aten._weight_int4pack_mm_with_scales_and_zeros.default

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def _channels_last(lowering: Lowering[None], before: Node, x: Node) -> Node:
    """Insert a copy in channels-last layout, of a tensor that may have another.

    The kernel reads the storage of its input as dense, in the layout that the strides suggest, and writes its result in
    the same. torch's fake kernel says channels-last for every result. Where a size is 1, its stride may be anything,
    and `contiguous` leaves it; `clone` writes new strides.
    """
    value = tensor_value(x)
    layout = _LAYOUTS[4 if value is None else value.dim()]
    is_clear = value is not None and (all(size != 1 for size in value.shape) or _suggests_channels_last(value))
    operator = aten.contiguous.default if is_clear else aten.clone.default
    return lowering.call(before, operator, x, memory_format=layout)


def _suggests_channels_last(value: Tensor) -> bool:
    """Whether torch takes strides for those of channels-last; one channel or one pixel may have those of both layouts.

    Source: torch, c10/core/MemoryFormat.h.
    """
    if not value.is_contiguous(memory_format=_LAYOUTS[value.dim()]):
        return False
    least: int | torch.SymInt = 0
    for dim in (1, *range(value.dim() - 1, 1, -1), 0):
        if value.stride(dim) < least or (dim == 0 and least == value.stride(1)):
            return False
        least = value.stride(dim) * value.shape[dim]
    return True


def _operands(lowering: Lowering[None], before: Node, x: Node, quantized: Quantized, weight: Weight) -> tuple[Any, ...]:
    """Arguments of each kernel up to the weight's zero points, which it counts and does not read."""
    given = (quantized.scale, quantized.zero_point) if quantized.is_dynamic else plain_parameters(quantized)
    integers = lowering.constant("_xpu_weight", weight.integers.contiguous(), before)
    scales = lowering.constant("_xpu_scale", weight.scale, before)
    zeros = lowering.constant("_xpu_zero", torch.zeros(weight.scale.numel(), dtype=torch.int32), before)
    return x, *given, integers, scales, zeros


def insert_qconv(
    lowering: Lowering[None],
    before: Node,
    x: Node,
    quantized: Quantized,
    weight: Weight,
    bias: Node | None,
    geometry: Geometry,
    output: Output,
) -> Node:
    """Insert a convolution in integers.

    Args:
        lowering: the graph.
        before: node to insert it before.
        x: node of the int8 or uint8 input, (batch, channels, sizes...), of two or three sizes.
        quantized: the input's parameters.
        weight: int8, (outputs, channels / groups, sizes...), symmetric.
        bias: float32, (outputs,), or None.
        geometry: of the convolution.
        output: description of the result.
    Returns: node of the result. The caller sets its metadata.
    """
    dense = _channels_last(lowering, before, x)
    operands = _operands(lowering, before, dense, quantized, weight)
    result = (output.scale, output.zero_point, output.dtype, output.attr, list(output.scalars), output.algorithm)
    kernel = QCONV_DYNAMIC if quantized.is_dynamic else QCONV
    return lowering.call(before, kernel, *operands, bias, *geometry.arguments, *result)


def insert_qconv_sum(
    lowering: Lowering[None],
    before: Node,
    x: Node,
    quantized: Quantized,
    weight: Weight,
    bias: Node | None,
    geometry: Geometry,
    output: Output,
    other: Quantized,
) -> Node:
    """Insert `qconv_sum`: a convolution in integers that adds a tensor of the result's dtype before it writes.

    Args: those of `insert_qconv`, and `other`, the tensor to add.
    Returns: the node of the sum.
    """
    dense = _channels_last(lowering, before, x)
    operands = _operands(lowering, before, dense, quantized, weight)
    summed = (other.integers, *plain_parameters(other))
    # Both must have one reader: in graphs of other tools, or exported twice, readers share a dequantize.
    is_read_once = len(other.integers.users) == 1 and len(other.node.users) == 1
    may_overwrite = other.integers.target in (QCONV, qconv_sum) and is_read_once
    result = (output.scale, output.zero_point, output.dtype, output.attr == "relu", *summed, may_overwrite)
    return lowering.call(before, qconv_sum, *operands, bias, *geometry.arguments, *result)


def qconv_sum(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    weight: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    scale: float,
    zero_point: int,
    dtype: torch.dtype,
    relu: bool,
    other: Tensor,
    other_scale: float,
    other_zero_point: int,
    may_overwrite: bool,
) -> Tensor:
    """Convolution plus an integer tensor, clamped at zero if `relu`, in integers.

    The kernel adds into the storage of `other` and returns it, so it gets a copy unless nothing else reads `other`. It
    reads that storage as dense. While torch.compile or torch.export traces, float operators compute the sum: they fuse,
    and a mutating kernel would not compile.

    Args: those of `onednn.qconv_pointwise`; `other`, of the result's shape and dtype; `may_overwrite`, whether nothing
        else reads `other`.
    Returns: the convolution's shape, with `scale` and `zero_point`.
    """
    geometry = (stride, padding, dilation, groups)
    operands = (x, x_scale, x_zero_point, weight, w_scale, w_zero_point)
    if torch.compiler.is_compiling():
        y = QCONV(*operands, bias, *geometry, 1.0, 0, torch.float32, "none", [None], "")
        y = y + (other.to(torch.float32) - other_zero_point) * other_scale
        limits = torch.iinfo(dtype)
        lowest = zero_point if relu else limits.min
        rounded = torch.round(y * (1.0 / scale)) + zero_point
        result: Tensor = torch.clamp(rounded, max(lowest, limits.min), limits.max).to(dtype)
        return result
    layout = torch.channels_last
    accumulator = other.contiguous(memory_format=layout) if may_overwrite else other.clone(memory_format=layout)
    summed = (scale, zero_point, dtype, other_scale, other_zero_point, "sum", 1.0)
    result = QCONV_SUM(*operands, accumulator, bias, *geometry, *summed, "relu" if relu else "none", [None], "")
    return result


def insert_qlinear(
    lowering: Lowering[None],
    before: Node,
    rows: Node,
    quantized: Quantized,
    weight: Weight,
    bias: Node | None,
    output: Output,
    other: Node | None,
) -> Node:
    """Insert a linear layer in integers.

    The kernel takes the weight as (features, outputs) and copies it in each call if it is a transposed view, so it is
    stored in that order.

    Args:
        lowering: the graph.
        before: node to insert it before.
        rows: node of the int8 or uint8 input, (rows, features).
        quantized: the input's parameters.
        weight: int8, (outputs, features), symmetric.
        bias: float32, (outputs,), or None.
        output: description of the result.
        other: float tensor to add before the clamp, (rows, outputs); None for none.
    Returns: node of the result, (rows, outputs). The caller sets its metadata.
    """
    # (outputs, features) -> (features, outputs)
    operands = _operands(lowering, before, rows, quantized, Weight(weight.integers.t(), weight.scale))
    written = (output.scale, output.zero_point, output.dtype)
    post_op = (output.attr, list(output.scalars), output.algorithm)
    if other is None:
        kernel = QLINEAR_DYNAMIC if quantized.is_dynamic else QLINEAR
        return lowering.call(before, kernel, *operands, bias, *written, *post_op)
    kernel = QLINEAR_ADD_DYNAMIC if quantized.is_dynamic else QLINEAR_ADD
    return lowering.call(before, kernel, *operands, other, bias, *written, 1.0, 0, "add", 1.0, *post_op)
