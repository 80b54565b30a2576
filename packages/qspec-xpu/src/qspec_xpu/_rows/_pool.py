"""Pooling family: the maximum of integers is the integer of the maximum."""

import torch

from qspec_core.lowering import lower_max_pool2d
from qspec_core.patterns import Flow, Row, activation
from qspec_xpu._rows._checks import has_rank

__all__ = ["ROWS"]

# Source: torch-xpu-ops, src/ATen/native/quantized/QuantizedMaxPool2d.cpp: plain int8 and uint8 tensors.
MAX_POOL2D = Row(
    name="max_pool2d",
    anchor=torch.ops.aten.max_pool2d.default,
    operands=(activation("self"),),
    flow=Flow.SHARES,
    lower=lower_max_pool2d,
    checks=(has_rank(4),),
)
ROWS = (MAX_POOL2D,)
