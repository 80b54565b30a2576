"""Operators that stay in float, with the reason that coverage and the documentation give."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch._ops import OpOverload

__all__ = ["FLOAT_ONLY"]

aten = torch.ops.aten

_POOL = (
    "average pooling on XPU takes floating-point tensors only (torch-xpu-ops, sycl/AveragePool2dKernels.cpp:671, "
    "sycl/AdaptiveAveragePooling2dKernels.cpp:491)"
)
_SUM = (
    "torch registers onednn.qadd for CPUs only. A sum after a convolution or a linear layer runs in its kernel (torch, "
    "mkldnn/xpu/qconv.cpp, qlinear.cpp)"
)
_PRODUCT = "torch registers onednn.qmul for CPUs only"
_ATTENTION = (
    "the one product of two integer activations is _int_mm (torch, mkldnn/xpu/Blas.cpp): two matrices, no batch, an "
    "int32 result without scale and zero point"
)
_CURVE = "it runs in integers only as a post-op of the linear kernel before it (torch, mkldnn/xpu/detail/Attr.h)"
_NO_POST_OP = "no kernel has it as a post-op (torch, mkldnn/xpu/detail/Attr.h, construct_attr_for_unary)"
_NORM = "it sums squares, which do not fit 8 bits"
_RECURRENT = (
    "recurrent layers are quantized as linear layers and loops; those over packed sequences, or with computed weights, "
    "are not"
)
_TABLE = "torch has no integer lookup with scales on XPU (torch-xpu-ops, sycl/EmbeddingBag.cpp: floating-point tables)"

FLOAT_ONLY: Mapping[OpOverload, str] = MappingProxyType(
    {
        **dict.fromkeys((aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default), _POOL),
        **dict.fromkeys((aten.mean.dim, aten.mean.default), _POOL),
        aten.add.Tensor: _SUM,
        aten.mul.Tensor: _PRODUCT,
        **dict.fromkeys((aten.matmul.default, aten.bmm.default, aten.baddbmm.default), _ATTENTION),
        **dict.fromkeys((aten.einsum.default, aten._grouped_mm.default), _ATTENTION),
        aten.scaled_dot_product_attention.default: _ATTENTION,
        **dict.fromkeys((aten.gelu.default, aten.tanh.default, aten.leaky_relu.default), _CURVE),
        **dict.fromkeys((aten.sigmoid.default, aten.hardsigmoid.default), _NO_POST_OP),
        **dict.fromkeys((aten.elu.default, aten.mish.default), _NO_POST_OP),
        **dict.fromkeys((aten.layer_norm.default, aten.group_norm.default, aten.rms_norm.default), _NORM),
        aten.softmax.int: "the range of its exponentials does not fit 8 bits",
        **dict.fromkeys((aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input), _RECURRENT),
        **dict.fromkeys((aten.lstm_cell.default, aten.gru_cell.default), _RECURRENT),
        **dict.fromkeys((aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default), _RECURRENT),
        **dict.fromkeys((aten.embedding.default, aten.embedding_bag.padding_idx), _TABLE),
    }
)
"""Operators without a row, by canonical overload."""
