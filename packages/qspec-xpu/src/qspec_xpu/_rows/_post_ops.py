"""Post-ops of the kernels: clamps, which cost nothing where saturation does them, curves, and sums.

Source: torch, aten/src/ATen/native/mkldnn/xpu/detail/Attr.h: `construct_attr_for_unary`, `construct_attr_by_post_op`.
"""

from math import inf

import torch
from torch.fx import Node

from qspec_core.graph import argument
from qspec_core.patterns import OtherRole, PostOp
from qspec_xpu._rows._checks import is_plain_sum

__all__ = ["CLAMPS", "CONVOLUTION", "FLOAT_SUMS", "LINEAR", "SUMS"]

aten = torch.ops.aten


def _positive(node: Node) -> tuple[float, float]:
    return 0.0, inf


def _limits(node: Node) -> tuple[float, float]:
    return float(argument(node, "min_val")), float(argument(node, "max_val"))


RELU = PostOp(aten.relu.default, kernel="relu", clamp=_positive)
HARDTANH = PostOp(aten.hardtanh.default, kernel="hardtanh", clamp=_limits)
HARDSWISH = PostOp(aten.hardswish.default, kernel="hardswish")
SILU = PostOp(aten.silu.default, kernel="swish")
GELU = PostOp(aten.gelu.default, kernel="gelu")
TANH = PostOp(aten.tanh.default, kernel="tanh")
LEAKY_RELU = PostOp(aten.leaky_relu.default, kernel="leaky_relu")
ADD = PostOp(aten.add.Tensor, kernel="sum", other=OtherRole.QUANTIZED, check=is_plain_sum)
ADD_FLOAT = PostOp(aten.add.Tensor, kernel="add", other=OtherRole.FLOAT, check=is_plain_sum)

CLAMPS = ((RELU,), (HARDTANH,), ())
"""Chains of the kernel over three dimensions, which has no post-op: saturation does the clamp, or an operator after."""
CONVOLUTION = ((RELU,), (HARDTANH,), (HARDSWISH,), (SILU,), ())
"""Chains of one tensor that the convolution kernel has."""
LINEAR = ((RELU,), (HARDTANH,), (HARDSWISH,), (SILU,), (GELU,), (TANH,), (LEAKY_RELU,), ())
"""Chains of one tensor that the linear kernel has."""
SUMS = ((ADD, RELU), (ADD,))
"""Chains of the convolution kernel with a second tensor, in integers: it adds into the storage of that tensor."""
FLOAT_SUMS = ((ADD_FLOAT, RELU), (ADD_FLOAT,))
"""Chains of the linear kernel with a second tensor, in float: it knows no scale of that tensor."""
