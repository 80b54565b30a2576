"""Linear family: int8 by int8 matrix products, accumulated in int32."""

import torch

from qspec_core.patterns import DELEGATED, Flow, Mode, Row, activation, bias, weight
from qspec_xnnpack._rows._checks import constant_bias
from qspec_xnnpack._rows._post_ops import HARDTANH, RELU
from qspec_xnnpack._rows._specs import by_token, full_precision, whole_groups

__all__ = ["ROWS"]

LINEAR = Row(
    name="linear",
    anchor=torch.ops.aten.linear.default,
    operands=(
        activation("input", adapt=by_token, refuses=full_precision),
        weight("weight", ch_axis=0, refuses=whole_groups),
        bias("bias"),
    ),
    chains=((HARDTANH,), (RELU,), ()),
    flow=Flow.STARTS,
    modes=frozenset({Mode.STATIC, Mode.DYNAMIC}),
    lower=DELEGATED,
    checks=(constant_bias,),
)
ROWS = (LINEAR,)
