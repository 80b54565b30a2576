"""Operators that stay in float, with the reason that coverage and the documentation give."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch._ops import OpOverload

__all__ = ["FLOAT_ONLY"]

aten = torch.ops.aten

_POOL = "torch has no integer kernel that averages faster than float; layers after a pooled tensor are few and small"
_SUM = (
    "onednn.qadd gives wrong numbers. A sum after a convolution runs in its kernel; the compiler fuses every other sum "
    "with its neighbours"
)
_ATTENTION = "torch has no batched integer product on CPUs"
_CURVE = (
    "the convolution kernel has no such post-op; the compiler fuses it with the quantize after it. For gelu that took "
    "as long as the linear kernel that has it"
)
_NORM = "it sums squares, which do not fit 8 bits"
_RECURRENT = (
    "recurrent layers are quantized as linear layers and loops; those over packed sequences, or with computed weights, "
    "are not"
)

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
        aten.softmax.int: "the range of its exponentials does not fit 8 bits",
        **dict.fromkeys((aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input), _RECURRENT),
        **dict.fromkeys((aten.lstm_cell.default, aten.gru_cell.default), _RECURRENT),
        **dict.fromkeys((aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default), _RECURRENT),
    }
)
"""Operators without a row, by canonical overload."""
