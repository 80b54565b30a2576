"""The x86 table: every operator pattern that runs in integers on a CPU, and what stays in float, with the reason."""

from types import MappingProxyType

import torch

from qspec_core.patterns import Outputs, PatternTable
from qspec_x86._rows import _conv, _linear, _pool, _shape

__all__ = ["TABLE"]

aten = torch.ops.aten

_POOL = "torch has no integer kernel that averages faster than float: the readers of a pooled tensor are few and small"
_SUM = "onednn.qadd gives wrong numbers: a sum runs in integers inside the convolution before it"
_ATTENTION = "torch has no batched product of integers on CPUs"

TABLE = PatternTable(
    rows=(*_conv.ROWS, *_linear.ROWS, *_pool.ROWS, *_shape.ROWS),
    outputs=Outputs.DEMAND,
    float_only=MappingProxyType(
        {
            aten.adaptive_avg_pool2d.default: _POOL,
            aten.avg_pool2d.default: _POOL,
            aten.mean.dim: _POOL,
            aten.mean.default: _POOL,
            aten.add.Tensor: _SUM,
            aten.mul.Tensor: "onednn.qmul gives wrong numbers",
            aten.matmul.default: _ATTENTION,
            aten.bmm.default: _ATTENTION,
            aten.scaled_dot_product_attention.default: _ATTENTION,
        }
    ),
)
"""Rows in the order in which they claim operators."""
