"""Convolution family: u8 by s8 convolutions of oneDNN, accumulated in s32."""

import torch

from qspec_core.patterns import Flow, Mode, OtherRole, PostOp, Row, activation, bias, weight
from qspec_x86._lowering import lower_conv2d
from qspec_x86._rows._checks import is_float32, is_plain_sum, is_rank_4
from qspec_x86._rows._clamps import HARDTANH, RELU
from qspec_x86._rows._narrow import narrow_weight_spec

__all__ = ["ROWS"]

aten = torch.ops.aten

ADD = PostOp(aten.add.Tensor, kernel="add", other=OtherRole.QUANTIZED, check=is_plain_sum)

CONV2D = Row(
    name="conv2d",
    anchor=aten.conv2d.default,
    # The bias stays float: the kernel adds it after it has rescaled the s32 sum.
    operands=(activation("input"), weight("weight", ch_axis=0, narrow=narrow_weight_spec), bias("bias")),
    chains=((ADD, RELU), (ADD,), (RELU,), (HARDTANH,), ()),
    flow=Flow.STARTS,
    modes=frozenset({Mode.STATIC}),
    lower=lower_conv2d,
    checks=(is_float32, is_rank_4),
)
ROWS = (CONV2D,)
