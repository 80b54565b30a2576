"""Convolution family: u8 by s8 convolutions of oneDNN, accumulated in s32."""

from dataclasses import replace

import torch
from torch._ops import OpOverload

from qspec_core.patterns import Flow, Mode, OtherRole, PostOp, Row, activation, bias, weight
from qspec_x86._lowering import lower_convolution
from qspec_x86._rows._checks import has_rank, is_float32, is_plain_sum, pays_to_find_its_range
from qspec_x86._rows._narrow import narrow_weight_spec
from qspec_x86._rows._tails import HARDTANH, RELU, UNARY

__all__ = ["ROWS"]

aten = torch.ops.aten

ADD = PostOp(aten.add.Tensor, kernel="add", other=OtherRole.QUANTIZED, check=is_plain_sum)
_SUMS = ((ADD, RELU), (ADD,))


def _row(dimensions: int, anchor: OpOverload, chains: tuple[tuple[PostOp, ...], ...]) -> Row:
    return Row(
        name=f"conv{dimensions}d",
        anchor=anchor,
        # The bias stays float: the kernel adds it after it has rescaled the s32 sum.
        operands=(activation("input"), weight("weight", ch_axis=0, narrow=narrow_weight_spec), bias("bias")),
        chains=chains,
        flow=Flow.STARTS,
        modes=frozenset({Mode.STATIC}),
        lower=lower_convolution,
        checks=(is_float32, has_rank(dimensions + 2)),
    )


def _dynamic(static: Row) -> Row:
    """The same convolution with a range found in each call. A second operand stays float, added by the compiler."""
    checks = (*static.checks, pays_to_find_its_range)
    modes = frozenset({Mode.DYNAMIC})
    return replace(static, name=f"{static.name}.dynamic", chains=UNARY, modes=modes, checks=checks)


_STATIC = (
    _row(2, aten.conv2d.default, (*_SUMS, *UNARY)),
    _row(1, aten.conv1d.default, (*_SUMS, *UNARY)),
    # The kernel over three dimensions has no post-op: clamps are left to saturation, or to the compiler.
    _row(3, aten.conv3d.default, ((RELU,), (HARDTANH,), ())),
)
ROWS = (*_STATIC, *map(_dynamic, _STATIC[:2]))
