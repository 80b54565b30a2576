"""Convolution family: s8 or u8 by s8 convolutions of oneDNN, accumulated in s32."""

from dataclasses import replace

import torch
from torch._ops import OpOverload

from qspec_core.patterns import Flow, Mode, PostOp, Row, activation, bias, weight
from qspec_xpu._lowering import lower_convolution, lower_transposed
from qspec_xpu._rows._checks import has_dtype, has_phases, has_rank
from qspec_xpu._rows._post_ops import CLAMPS, CONVOLUTION, SUMS

__all__ = ["ROWS"]

aten = torch.ops.aten
# Source: torch, aten/src/ATen/native/mkldnn/xpu/qconv.cpp, `qconv_decide_out_dtype`: float32, bfloat16, or the dtype of
# the activation. A float16 result would be integers.
_WRITES = has_dtype(torch.float32, torch.bfloat16)

_ANY_RANGE = frozenset({Mode.STATIC, Mode.DYNAMIC})


def _row(dimensions: int, anchor: OpOverload, chains: tuple[tuple[PostOp, ...], ...]) -> Row:
    return Row(
        name=f"conv{dimensions}d",
        anchor=anchor,
        # The bias stays float: the kernel adds it after it has rescaled the s32 sum.
        operands=(activation("input"), weight("weight", ch_axis=0), bias("bias")),
        chains=chains,
        flow=Flow.STARTS,
        lower=lower_convolution,
        checks=(_WRITES, has_rank(dimensions + 2)),
    )


def _dynamic(static: Row) -> Row:
    """Make the dynamic row of a convolution. The kernel takes the scale of a second tensor as a number."""
    chains = tuple(chain for chain in static.chains if chain not in SUMS)
    return replace(static, name=f"{static.name}.dynamic", chains=chains, modes=frozenset({Mode.DYNAMIC}))


def _transposed(plain: Row, anchor: OpOverload) -> Row:
    """Make the row of a transposed convolution, which runs in the kernel of a plain one.

    Its output channels are the second dimension of the weight."""
    return replace(
        plain,
        name=f"conv_transpose{plain.name.removeprefix('conv')}",
        anchor=anchor,
        operands=(activation("input"), weight("weight", ch_axis=1), bias("bias")),
        chains=tuple(chain for chain in plain.chains if chain not in SUMS),
        modes=_ANY_RANGE,
        lower=lower_transposed,
        checks=(*plain.checks, has_phases),
    )


_PLANE = _row(2, aten.conv2d.default, (*SUMS, *CONVOLUTION))
_LINE = _row(1, aten.conv1d.default, (*SUMS, *CONVOLUTION))
_VOLUME = replace(_row(3, aten.conv3d.default, CLAMPS), modes=_ANY_RANGE)
ROWS = (
    *(_PLANE, _LINE, _VOLUME, _dynamic(_PLANE), _dynamic(_LINE)),
    _transposed(_PLANE, aten.conv_transpose2d.input),
    _transposed(_LINE, aten.conv_transpose1d.default),
    _transposed(_VOLUME, aten.conv_transpose3d.input),
)
