"""Linear family: s8 or u8 by s8 products of oneDNN, accumulated in s32; float by 8- or 4-bit products."""

import torch

from qspec_core.patterns import Flow, Mode, Row, activation, bias, weight
from qspec_xpu._lowering import lower_linear, lower_weight_only
from qspec_xpu._rows._checks import has_dtype, unfit_groups
from qspec_xpu._rows._post_ops import FLOAT_SUMS, LINEAR

__all__ = ["ROWS"]

aten = torch.ops.aten

_STATIC_OR_DYNAMIC = Row(
    name="linear",
    anchor=aten.linear.default,
    operands=(activation("input"), weight("weight", ch_axis=0), bias("bias")),
    chains=(*FLOAT_SUMS, *LINEAR),
    flow=Flow.STARTS,
    modes=frozenset({Mode.STATIC, Mode.DYNAMIC}),
    lower=lower_linear,
    checks=(has_dtype(torch.float32, torch.bfloat16),),
)
_WEIGHT_ONLY = Row(
    name="linear.weight_only",
    anchor=aten.linear.default,
    operands=(activation("input"), weight("weight", ch_axis=0, refuses=unfit_groups), bias("bias")),
    flow=Flow.STARTS,
    modes=frozenset({Mode.WEIGHT_ONLY}),
    lower=lower_weight_only,
    checks=(has_dtype(torch.float32, torch.bfloat16, torch.float16),),
)
ROWS = (_STATIC_OR_DYNAMIC, _WEIGHT_ONLY)
