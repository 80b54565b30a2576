"""Operators without integer kernel in ExecuTorch's XNNPACK delegate (1.5.1), each with the reason for coverage."""

import torch
from torch._ops import OpOverload

__all__ = ["FLOAT_ONLY"]

aten = torch.ops.aten
_FLOAT_KERNEL = "XNNPACK's delegate has a float kernel for it and no int8 kernel"
_DELEGATED_IN_FLOAT: tuple[OpOverload, ...] = (
    aten.abs.default,
    aten.avg_pool2d.default,
    aten.batch_norm.default,
    aten.bmm.default,
    aten.ceil.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.div.Tensor,
    aten.exp.default,
    aten.floor.default,
    aten.gelu.default,
    aten.hardswish.default,
    aten.leaky_relu.default,
    aten.log.default,
    aten.matmul.default,
    aten.max.dim,
    aten.maximum.default,
    aten.minimum.default,
    aten.neg.default,
    aten.pad.default,
    aten.pow.Tensor_Scalar,
    aten.prelu.default,
    aten.rsqrt.default,
    aten.scaled_dot_product_attention.default,
    aten.sigmoid.default,
    aten.silu.default,
    aten.sin.default,
    aten.cos.default,
    aten.softmax.int,
    aten.sqrt.default,
    aten.tanh.default,
    aten.upsample_bilinear2d.vec,
)
_NO_KERNEL = "XNNPACK's delegate has no kernel for it; ExecuTorch's portable kernels run it in float"
_NOT_DELEGATED: tuple[OpOverload, ...] = (
    aten.baddbmm.default,
    aten.conv3d.default,
    aten.conv_transpose3d.input,
    aten.group_norm.default,
    aten.layer_norm.default,
)
_VIEW = "the delegate takes it only as a view, and so only if the shape is known before the model runs"
_SQUEEZES: tuple[OpOverload, ...] = (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
_MEAN = "XNNPACK's delegate averages over height and width only"
_RECURRENT = (
    "recurrent layers are quantized as linear layers and loops; those over packed sequences, or with computed weights, "
    "are not"
)
_RECURRENTS: tuple[OpOverload, ...] = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
_NO_BAG = "ExecuTorch's runtime has no kernel for it, in float either"
_BAGS: tuple[OpOverload, ...] = (aten.embedding_bag.padding_idx, aten.embedding_bag.default)
FLOAT_ONLY: dict[OpOverload, str] = {
    **dict.fromkeys(_DELEGATED_IN_FLOAT, _FLOAT_KERNEL),
    **dict.fromkeys(_NOT_DELEGATED, _NO_KERNEL),
    **dict.fromkeys(_SQUEEZES, _VIEW),
    aten.mean.default: _MEAN,
    **dict.fromkeys(_RECURRENTS, _RECURRENT),
    **dict.fromkeys(_BAGS, _NO_BAG),
}
