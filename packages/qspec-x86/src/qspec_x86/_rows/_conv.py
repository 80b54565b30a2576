"""Convolution family: u8 by s8 convolutions of oneDNN, accumulated in s32."""

from dataclasses import replace

import torch
from torch._ops import OpOverload
from torch.fx import Node

from qspec_core.lowering import phases_of
from qspec_core.patterns import Flow, Mode, OtherRole, PostOp, Reason, Row, activation, bias, weight
from qspec_x86._lowering import lower_convolution, lower_transposed
from qspec_x86._rows._checks import dynamic_is_faster, has_rank, is_float32, is_plain_sum
from qspec_x86._rows._post_ops import HARDTANH, RELU, UNARY
from qspec_x86._rows._specs import narrow_weight_spec, one_range

__all__ = ["ROWS"]

aten = torch.ops.aten

ADD = PostOp(aten.add.Tensor, kernel="add", other=OtherRole.QUANTIZED, check=is_plain_sum)
_SUMS = ((ADD, RELU), (ADD,))
_CLAMPS = ((RELU,), (HARDTANH,), ())
"""The 3d kernel has no post-op: saturation does the clamp, or the compiler."""


def _row(dimensions: int, anchor: OpOverload, chains: tuple[tuple[PostOp, ...], ...]) -> Row:
    return Row(
        name=f"conv{dimensions}d",
        anchor=anchor,
        # The bias stays float: the kernel adds it after it has rescaled the s32 sum.
        operands=(
            activation("input", adapt=one_range),
            weight("weight", ch_axis=0, adapt=narrow_weight_spec),
            bias("bias"),
        ),
        chains=chains,
        flow=Flow.STARTS,
        lower=lower_convolution,
        checks=(is_float32, has_rank(dimensions + 2)),
    )


def _dynamic(static: Row) -> Row:
    """Make the dynamic row of a convolution. The compiler adds a second operand in float."""
    checks = (*static.checks, dynamic_is_faster)
    modes = frozenset({Mode.DYNAMIC})
    return replace(static, name=f"{static.name}.dynamic", chains=UNARY, modes=modes, checks=checks)


def _has_phases(node: Node) -> Reason | None:
    """Decline transposed convolutions that no plain convolution computes."""
    if phases_of(node) is not None:
        return None
    detail = "its stride and dilation are both more than 1, or its padding is larger than its kernel reaches"
    return Reason.unsupported(detail)


def _transposed(plain: Row, anchor: OpOverload, modes: frozenset[Mode]) -> Row:
    """Make the row of a transposed convolution, which runs in the kernel of a plain one.

    Its output channels are the second dimension of the weight."""
    return replace(
        plain,
        name=f"conv_transpose{plain.name.removeprefix('conv')}",
        anchor=anchor,
        operands=(
            activation("input", adapt=one_range),
            weight("weight", ch_axis=1, adapt=narrow_weight_spec),
            bias("bias"),
        ),
        chains=tuple(chain for chain in plain.chains if ADD not in chain),
        modes=modes,
        lower=lower_transposed,
        checks=(*plain.checks, _has_phases),
    )


_PLANE = _row(2, aten.conv2d.default, (*_SUMS, *UNARY))
_LINE = _row(1, aten.conv1d.default, (*_SUMS, *UNARY))
_VOLUME = _row(3, aten.conv3d.default, _CLAMPS)
_ANY_RANGE = frozenset({Mode.STATIC, Mode.DYNAMIC})
ROWS = (
    *(_PLANE, _LINE, _VOLUME, _dynamic(_PLANE), _dynamic(_LINE)),
    _transposed(_PLANE, aten.conv_transpose2d.input, _ANY_RANGE),
    _transposed(_LINE, aten.conv_transpose1d.default, _ANY_RANGE),
    _transposed(_VOLUME, aten.conv_transpose3d.input, frozenset({Mode.STATIC})),
)
