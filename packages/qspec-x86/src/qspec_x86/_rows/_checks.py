"""Checks that rows share: each gives the reason why a call cannot run in a kernel."""

from collections.abc import Callable
from math import prod

import torch
from torch.fx import Node

from qspec_core import QuantizationSpec
from qspec_core.graph import argument, argument_names, require_tensor_value, tensor_value
from qspec_core.observers import PerGroup, build_observer
from qspec_core.patterns import Reason, ReasonCode
from qspec_x86._depthwise import is_depthwise
from qspec_x86._lowering._kernels import BLOCK, FOUR_BITS, fits_four_bits

__all__ = [
    "dynamic_is_faster",
    "has_rank",
    "is_constant_pad",
    "is_float32",
    "is_plain_sum",
    "unfit_groups",
    "weight_only_is_faster",
]


def is_float32(node: Node) -> Reason | None:
    """Decline results that are not float32: the kernels rescale to and from float32."""
    value = tensor_value(node)
    if value is None:
        return Reason.unsupported("the shape of its result is unknown: the graph carries no fake tensors")
    if value.dtype is torch.float32:
        return None
    if not value.is_floating_point():
        return Reason(ReasonCode.NOT_FLOATING_POINT, str(value.dtype))
    return Reason.unsupported(f"its result is {value.dtype}; the kernels write float32")


_FEW_ROWS = 4


def weight_only_is_faster(node: Node) -> Reason | None:
    """Decline weight-only layers that are slower than float: other dtypes than bfloat16, and many rows.

    On a CPU with AVX-512 BF16, 4096 by 4096, one row: 1.0 ms, against 2.8 in bfloat16. Of 2048 by 2048, 4 rows took as
    long as in bfloat16, 16 rows twice as long; in float32 one row took 4 times as long as in float. On AVX2, 2048 by
    2048, in ms of bfloat16, int8 and int4: one row 0.90, 0.53, 0.67; 4 rows 3.7, 1.1, 0.82. In float32 one row takes 7
    to 11 times as long as in float.
    """
    value = tensor_value(node)
    if value is None or value.dtype is not torch.bfloat16:
        found = "unknown" if value is None else value.dtype
        return Reason.unsupported(f"its result is {found}; weight-only kernels are faster than float only in bfloat16")
    features = require_tensor_value(argument(node, "weight")).shape[1]
    if features % BLOCK != 0:
        return Reason.unsupported(
            f"it has {features} input features; the kernel reads blocks of {BLOCK} and would read past the end"
        )
    rows: int | torch.SymInt = prod(value.shape[:-1])
    if isinstance(rows, int) and rows > _FEW_ROWS:
        return Reason.unsupported(
            f"it has {rows} rows; weight-only kernels are faster than bfloat16 for up to {_FEW_ROWS}"
        )
    return None


def unfit_groups(node: Node, spec: QuantizationSpec) -> Reason | None:
    """Decline weights with a scale for each group that the kernel lacks: it has 4 bits, and a few group sizes."""
    granularity = getattr(build_observer(spec), "granularity", None)
    if not isinstance(granularity, PerGroup):
        return None
    outputs, features = require_tensor_value(argument(node, "weight")).shape
    group, (low, high) = granularity.group_size, spec.range or (0, FOUR_BITS)
    if high - low >= FOUR_BITS:
        return Reason.unsupported(f"weights in groups have the range {low}..{high}; the kernel takes 4 bits")
    if not fits_four_bits(outputs, features, group):
        return Reason.unsupported(
            f"{outputs} by {features} weights in groups of {group}: the kernel takes groups of 32, 64, 128 and 256, "
            f"that divide the input features, and outputs in multiples of {BLOCK}"
        )
    return None


def dynamic_is_faster(node: Node) -> Reason | None:
    """Decline depthwise convolutions: they compute too little for each value that a call would quantize."""
    if not is_depthwise(node):
        return None
    return Reason.unsupported("it is depthwise: finding the range of its input takes longer than integers save")


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


def is_plain_sum(previous: Node, node: Node) -> Reason | None:
    """Decline sums that scale or broadcast an operand: the kernel adds a tensor of the convolution's shape."""
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
