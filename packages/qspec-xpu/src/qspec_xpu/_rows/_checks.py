"""Checks that rows share: each gives the reason why a call cannot run in a kernel."""

from collections.abc import Callable

import torch
from torch.fx import Node

from qspec_core import QuantizationSpec
from qspec_core.graph import argument, argument_names, require_tensor_value, tensor_value
from qspec_core.lowering import phases_of
from qspec_core.observers import PerGroup, build_observer
from qspec_core.patterns import Reason, ReasonCode

__all__ = [
    "has_dtype",
    "has_phases",
    "has_rank",
    "is_constant_pad",
    "is_plain_sum",
    "unfit_groups",
]

FOUR_BITS, GROUP, WORD = 16, 32, 8
"""Integers of the 4-bit kernel, the number that divides its group sizes, and the weights in one int32."""


def has_dtype(*dtypes: torch.dtype) -> Callable[[Node], Reason | None]:
    """Make a check that the result has one of these dtypes, which the kernel writes."""

    def check(node: Node) -> Reason | None:
        value = tensor_value(node)
        if value is None:
            return Reason.unsupported("the shape of its result is unknown: the graph carries no fake tensors")
        if value.dtype in dtypes:
            return None
        if not value.is_floating_point():
            return Reason(ReasonCode.NOT_FLOATING_POINT, str(value.dtype))
        return Reason.unsupported(f"its result is {value.dtype}; the kernel writes {', '.join(map(str, dtypes))}")

    return check


def has_rank(rank: int) -> Callable[[Node], Reason | None]:
    """Make a check that the result has `rank` dimensions: the kernels take batches only."""

    def check(node: Node) -> Reason | None:
        value = tensor_value(node)
        if value is None or value.dim() == rank:
            return None
        return Reason.unsupported(
            f"its input has rank {value.dim()}; the kernel takes rank {rank}, a batch of channels"
        )

    return check


def has_phases(node: Node) -> Reason | None:
    """Decline transposed convolutions that no plain convolution computes."""
    if phases_of(node) is not None:
        return None
    detail = "its stride and dilation are both more than 1, or its padding is larger than its kernel reaches"
    return Reason.unsupported(detail)


def is_plain_sum(previous: Node, node: Node) -> Reason | None:
    """Decline sums that scale or broadcast an operand: the kernel adds a tensor of its result's shape."""
    if argument(node, "alpha") != 1:
        return Reason.unsupported(f"the sum has alpha={argument(node, 'alpha')}")
    first, second = (tensor_value(argument(node, name)) for name in argument_names(torch.ops.aten.add.Tensor)[:2])
    if first is None or second is None:
        return Reason.unsupported("an operand of the sum is not a tensor of the graph")
    if first.shape != second.shape or first.dtype != second.dtype:
        return Reason.unsupported(f"the operands of the sum differ: {list(first.shape)} and {list(second.shape)}")
    return None


def is_constant_pad(node: Node) -> Reason | None:
    """Decline padding by other values than a constant, which is one integer."""
    mode = argument(node, "mode")
    return None if mode == "constant" else Reason.unsupported(f"padding mode {mode!r}")


def unfit_groups(node: Node, spec: QuantizationSpec) -> Reason | None:
    """Decline weights with a scale for each group that the 4-bit kernel cannot take.

    Source: torch, aten/src/ATen/native/mkldnn/xpu/Blas.cpp, `_weight_int4pack_mm_xpu`: groups of a multiple of 32.
    """
    granularity = getattr(build_observer(spec), "granularity", None)
    if not isinstance(granularity, PerGroup):
        return None
    group, (low, high) = granularity.group_size, spec.range or (0, FOUR_BITS)
    features = require_tensor_value(argument(node, "weight")).shape[1]
    if high - low >= FOUR_BITS:
        return Reason.unsupported(f"weights in groups have the range {low}..{high}; the kernel takes 4 bits")
    if group % GROUP != 0 or features % group != 0:
        return Reason.unsupported(
            f"{features} input features in groups of {group}: the kernel takes groups of a multiple of {GROUP} that "
            "divide the input features"
        )
    value = tensor_value(node)
    if value is not None and value.dtype is torch.float32:
        return Reason.unsupported("its result is torch.float32; the 4-bit kernel computes in bfloat16 or float16")
    return None
