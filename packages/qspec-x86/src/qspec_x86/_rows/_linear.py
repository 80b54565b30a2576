"""Linear family: u8 by s8 products of oneDNN, accumulated in s32; bfloat16 by 8- or 4-bit products for few rows."""

import torch

from qspec_core.patterns import Flow, Mode, Row, activation, bias, weight
from qspec_x86._lowering import lower_linear, lower_weight_only
from qspec_x86._rows._checks import is_float32, unfit_groups, weight_only_is_faster
from qspec_x86._rows._post_ops import UNARY
from qspec_x86._rows._specs import narrow_weight_spec

__all__ = ["ROWS"]

aten = torch.ops.aten

LINEAR = Row(
    name="linear",
    anchor=aten.linear.default,
    operands=(activation("input"), weight("weight", ch_axis=0, adapt=narrow_weight_spec), bias("bias")),
    chains=UNARY,
    flow=Flow.STARTS,
    modes=frozenset({Mode.STATIC, Mode.DYNAMIC}),
    lower=lower_linear,
    checks=(is_float32,),
)

WEIGHT_ONLY = Row(
    name="linear.weight_only",
    anchor=aten.linear.default,
    operands=(activation("input"), weight("weight", ch_axis=0, refuses=unfit_groups), bias("bias")),
    flow=Flow.STARTS,
    modes=frozenset({Mode.WEIGHT_ONLY}),
    lower=lower_weight_only,
    checks=(weight_only_is_faster,),
)
ROWS = (LINEAR, WEIGHT_ONLY)
