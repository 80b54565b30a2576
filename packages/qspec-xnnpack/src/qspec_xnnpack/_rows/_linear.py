"""Linear family: int8 by int8 matrix products, accumulated in int32."""

import torch

from qspec_core.patterns import DELEGATED, Flow, Mode, Row, activation, bias, weight
from qspec_xnnpack._rows._checks import constant_bias
from qspec_xnnpack._rows._clamps import HARDTANH, RELU

__all__ = ["ROWS"]

LINEAR = Row(
    name="linear",
    anchor=torch.ops.aten.linear.default,
    operands=(activation("input"), weight("weight", ch_axis=0), bias("bias")),
    chains=((HARDTANH,), (RELU,), ()),
    flow=Flow.STARTS,
    modes=frozenset({Mode.STATIC}),
    lower=DELEGATED,
    checks=(constant_bias,),
)
ROWS = (LINEAR,)
