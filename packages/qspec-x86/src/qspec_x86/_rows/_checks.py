"""Why a call cannot run in a kernel: checks that rows share."""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor
from torch.fx import Node

from qspec_core import QuantizationSpec
from qspec_core.graph import argument, argument_names
from qspec_core.observers import PerGroup, build_observer
from qspec_core.patterns import Reason, ReasonCode
from qspec_x86._depthwise import is_depthwise
from qspec_x86._lowering._kernels import BLOCK, FOUR_BITS, fits_four_bits

__all__ = [
    "has_rank",
    "is_constant_pad",
    "is_float32",
    "is_plain_sum",
    "pays_by_weight_alone",
    "pays_to_find_its_range",
    "unfit_groups",
]


def _value(node: object) -> Tensor | None:
    found = node.meta.get("val") if isinstance(node, Node) else None
    return found if isinstance(found, Tensor) else None


def is_float32(node: Node) -> Reason | None:
    """The kernels rescale to and from float32."""
    value = _value(node)
    if value is None:
        return Reason.unsupported("the shape of its result is unknown: the graph carries no fake tensors")
    if value.dtype is torch.float32:
        return None
    if not value.is_floating_point():
        return Reason(ReasonCode.NOT_FLOATING_POINT, str(value.dtype))
    return Reason.unsupported(f"its result is {value.dtype}; the kernels write float32")


_FEW_ROWS = 4


def pays_by_weight_alone(node: Node) -> Reason | None:
    """The kernels of integer weights and float activations are made for bfloat16, and for reading weights once for few
    rows.

    On a CPU with AVX-512 BF16, 4096 by 4096, one row: 1.0 ms, against 2.8 in bfloat16. Of 2048 by 2048, 4 rows took as
    long as in bfloat16, 16 rows twice as long; in float32 one row took 4 times as long as in float. On AVX2, 2048 by
    2048, in ms of bfloat16, int8 and int4: one row 0.90, 0.53, 0.67; 4 rows 3.7, 1.1, 0.82. In float32 one row takes 7
    to 11 times as long as in float.
    """
    value = _value(node)
    if value is None or value.dtype is not torch.bfloat16:
        found = "unknown" if value is None else value.dtype
        return Reason.unsupported(
            f"its result is {found}; with integer weights alone only bfloat16 is faster than float"
        )
    features = argument(node, "weight").meta["val"].shape[1]
    if features % BLOCK != 0:
        return Reason.unsupported(
            f"it has {features} input features; the kernel reads blocks of {BLOCK}, past the end otherwise"
        )
    rows: int | torch.SymInt = prod(value.shape[:-1])
    if isinstance(rows, int) and rows > _FEW_ROWS:
        return Reason.unsupported(
            f"it has {rows} rows; integer weights alone are faster than bfloat16 for up to {_FEW_ROWS}"
        )
    return None


def unfit_groups(node: Node, spec: QuantizationSpec) -> Reason | None:
    """A weight with a scale for each group: the kernel holds 4 bits, and has groups of a few sizes."""
    granularity = getattr(build_observer(spec), "granularity", None)
    if not isinstance(granularity, PerGroup):
        return None
    outputs, features = argument(node, "weight").meta["val"].shape
    group, (low, high) = granularity.group_size, spec.range or (0, FOUR_BITS)
    if high - low >= FOUR_BITS:
        return Reason.unsupported(f"weights in groups have the range {low}..{high}; the kernel holds 4 bits")
    if not fits_four_bits(outputs, features, group):
        return Reason.unsupported(
            f"{outputs} by {features} weights in groups of {group}: the kernel takes groups of 32, 64, 128 and 256, "
            f"that make up the input features, and outputs in multiples of {BLOCK}"
        )
    return None


def pays_to_find_its_range(node: Node) -> Reason | None:
    """A depthwise convolution computes too little for each value that would be quantized anew in each call."""
    if not is_depthwise(node):
        return None
    return Reason.unsupported("it is depthwise: finding the range of its input costs more than integers save")


def has_rank(rank: int) -> Callable[[Node], Reason | None]:
    """A check that the result has `rank` dimensions: the kernels take batches only."""

    def check(node: Node) -> Reason | None:
        value = _value(node)
        if value is None or value.dim() == rank:
            return None
        return Reason.unsupported(
            f"its input has rank {value.dim()}; the kernel takes rank {rank}, a batch of channels"
        )

    return check


def is_plain_sum(previous: Node, node: Node) -> Reason | None:
    """The kernel adds a tensor of the convolution's own shape, as it is."""
    if argument(node, "alpha") != 1:
        return Reason.unsupported(f"the sum has alpha={argument(node, 'alpha')}")
    first, second = (_value(argument(node, name)) for name in argument_names(torch.ops.aten.add.Tensor)[:2])
    if first is None or second is None:
        return Reason.unsupported("the sum has an operand that is no tensor of the graph")
    if first.shape != second.shape or first.dtype != second.dtype:
        return Reason.unsupported(f"the operands of the sum differ: {list(first.shape)} and {list(second.shape)}")
    return None


def is_constant_pad(node: Node) -> Reason | None:
    """Only a constant can be written as one integer."""
    mode = argument(node, "mode")
    return None if mode == "constant" else Reason.unsupported(f"padding mode {mode!r}")
