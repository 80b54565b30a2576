"""What stays in float, with the reason that coverage and the documentation give."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch._ops import OpOverload

__all__ = ["FLOAT_ONLY"]

aten = torch.ops.aten

_POOL = "torch has no integer kernel that averages faster than float: the readers of a pooled tensor are few and small"
_SUM = (
    "onednn.qadd gives wrong numbers: a sum runs in integers inside the convolution before it, and the compiler joins "
    "every other one with its neighbours"
)
_ATTENTION = "torch has no batched product of integers on CPUs"
_CURVE = (
    "the convolution kernel has no such post-op: the compiler joins it with the quantize behind it; for gelu that took "
    "as long as the linear kernel that has it"
)
_NORM = "it is computed from sums of squares, which 8 bits do not hold"
_RECURRENT = "torch has no integer kernel for recurrent layers in exported graphs"

FLOAT_ONLY: Mapping[OpOverload, str] = MappingProxyType(
    {
        **dict.fromkeys((aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default), _POOL),
        **dict.fromkeys((aten.mean.dim, aten.mean.default), _POOL),
        aten.add.Tensor: _SUM,
        aten.mul.Tensor: "onednn.qmul gives wrong numbers",
        **dict.fromkeys((aten.matmul.default, aten.bmm.default, aten.baddbmm.default), _ATTENTION),
        **dict.fromkeys((aten.einsum.default, aten._grouped_mm.default), _ATTENTION),
        aten.scaled_dot_product_attention.default: _ATTENTION,
        **dict.fromkeys((aten.gelu.default, aten.tanh.default, aten.sigmoid.default), _CURVE),
        **dict.fromkeys((aten.leaky_relu.default, aten.elu.default, aten.mish.default), _CURVE),
        aten.hardsigmoid.default: _CURVE,
        **dict.fromkeys((aten.layer_norm.default, aten.group_norm.default, aten.rms_norm.default), _NORM),
        aten.softmax.int: "its exponentials span more than 8 bits hold",
        **dict.fromkeys((aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input), _RECURRENT),
        **dict.fromkeys((aten.lstm_cell.default, aten.gru_cell.default), _RECURRENT),
        **dict.fromkeys((aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default), _RECURRENT),
    }
)
"""Operators without a row, by canonical overload."""
