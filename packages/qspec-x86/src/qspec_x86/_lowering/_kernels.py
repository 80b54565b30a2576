"""The one integer kernel that pays through torch on every x86 CPU: oneDNN's u8 by s8 convolution, with and without a
sum.

A linear layer goes through it too, as a 1x1 convolution over its rows: `onednn.qlinear_pointwise` took 1.3 to 6 times
as long on AVX2, and torch.compile takes it only while freezing is switched on for the whole process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qspec_core.lowering import Lowering, Quantized
from qspec_x86._lowering._bounds import Output
from qspec_x86._lowering._options import Options
from qspec_x86._lowering._parameters import plain_parameters
from qspec_x86._lowering._weights import Weight
from qspec_x86._torch import size_hint

__all__ = [
    "BLOCK",
    "FOUR_BITS",
    "PACK_FOUR_BITS",
    "PREPACK",
    "QCONV",
    "QCONV_DYNAMIC",
    "Geometry",
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
FOUR_BITS = 16
"""Integers that the kernel of 4-bit weights knows."""
BLOCK = 16
"""Input features that the kernel of 8-bit weights reads at a time, and outputs that the one of 4-bit weights packs."""
_GROUPS = (32, 64, 128, 256)


def fits_four_bits(outputs: int, features: int, group: int) -> bool:
    """Whether the kernel of 4-bit weights takes this weight with a scale for `group` input features."""
    return group in _GROUPS and features % group == 0 and outputs % BLOCK == 0


@dataclass(frozen=True)
class Geometry:
    """Stride, padding and dilation of each spatial dimension, and groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def arguments(self) -> tuple[list[int], list[int], list[int], int]:
        """As the kernels take them."""
        return list(self.stride), list(self.padding), list(self.dilation), self.groups


def _shape(x: Node) -> list[int] | None:
    """Sizes of a tensor, those of the example where they may vary; None if one is unknown."""
    value = x.meta.get("val")
    sizes = [size_hint(size) for size in value.shape] if isinstance(value, Tensor) else [None]
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(sizes) else None


def _packed(
    lowering: Lowering[Options], before: Node, x: Node, quantized: Quantized, weight: Weight, geometry: Geometry
) -> tuple[Any, ...]:
    """The kernel's arguments up to the weight's zero points: input, its parameters, the packing of the weight.

    Shape and zero point matter: packed for others, the weight is reordered on every call; a linear of 768 by 3072 over
    128 rows then takes 7 ms, not 1.4. Where a size may vary, the example's is the best guess. Of a zero point
    that is known only when the model runs, what matters is that it is not 0: packed for 0, one row of 768 features took
    ten times as long.
    """
    if quantized.is_dynamic:
        given, assumed = (quantized.scale, quantized.zero_point), (1.0, _MIDDLE)
    else:
        given = assumed = plain_parameters(quantized)
    integers = lowering.constant("_x86_weight", weight.integers, before)
    scales = lowering.constant("_x86_scale", weight.scale, before)
    zeros = lowering.constant("_x86_zero", torch.zeros(weight.scale.numel(), dtype=torch.int64), before)
    packed = lowering.call(before, PREPACK, integers, scales, *assumed, *geometry.arguments, _shape(x))
    packed.meta["val"] = integers.meta["val"]
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
    """Insert a convolution in integers, its weight packed by a node of the graph.

    Args:
        lowering: the graph.
        before: node in front of which it goes.
        x: node of the uint8 input, (batch, channels, height, width).
        quantized: the input's parameters.
        weight: int8, (outputs, channels / groups, height, width), symmetric.
        bias: float32, (outputs,), or None.
        geometry: of the convolution.
        output: what is written.
    Returns: the kernel's node; the caller gives it its metadata.
    """
    operands = _packed(lowering, before, x, quantized, weight, geometry)
    result = (output.scale, output.zero_point, output.dtype, output.attr, list(output.scalars), "")
    kernel = QCONV_DYNAMIC if quantized.is_dynamic else QCONV
    return lowering.call(before, kernel, *operands, bias, *geometry.arguments, *result)


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

    Args: as of `insert_qconv`, and `other`, the tensor that is added.
    Returns: the node of the sum.
    """
    operands = _packed(lowering, before, x, quantized, weight, geometry)
    summed = (other.integers, *plain_parameters(other))
    # Both must have one reader: graphs of other tools, and graphs exported again, share a dequantize between readers.
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

    The kernel adds onto the other tensor and returns its storage, so it is given a copy unless nobody else reads it.
    While torch.compile traces, the sum is written in float operators instead: they fuse, and a mutating kernel would
    not compile.

    Args: those of `onednn.qconv_pointwise`; `other`, uint8, of the result's shape; `may_overwrite`, nobody else reads
        `other`.
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
