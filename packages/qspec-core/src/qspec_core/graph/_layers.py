"""Operators that hold weights, by kind, with every overload that exported graphs call."""

import torch

from qspec_core._torch import OpOverload

__all__ = [
    "CONVOLUTIONS",
    "EMBEDDINGS",
    "LAYERS",
    "LINEARS",
    "NORMALIZATIONS",
    "RECURRENT",
    "RECURRENT_CELLS",
    "TRANSPOSED",
]

_aten = torch.ops.aten

LINEARS: tuple[OpOverload, ...] = (_aten.linear.default,)
CONVOLUTIONS: tuple[OpOverload, ...] = tuple(
    overload for packet in (_aten.conv1d, _aten.conv2d, _aten.conv3d) for overload in (packet.default, packet.padding)
)
"""With weights (outputs, inputs / groups, ...)."""
TRANSPOSED: tuple[OpOverload, ...] = (
    _aten.conv_transpose1d.default,
    _aten.conv_transpose2d.input,
    _aten.conv_transpose3d.input,
)
"""With weights (inputs, outputs / groups, ...)."""
LAYERS = (*LINEARS, *CONVOLUTIONS, *TRANSPOSED, _aten.convolution.default)
"""Convolution and linear layers. Decomposed graphs call `aten.convolution` for every convolution."""
RECURRENT: tuple[OpOverload, ...] = (
    *(_aten.lstm.input, _aten.lstm.data, _aten.gru.input, _aten.gru.data),
    *(_aten.rnn_tanh.input, _aten.rnn_tanh.data, _aten.rnn_relu.input, _aten.rnn_relu.data),
)
"""Recurrent layers over whole sequences."""
RECURRENT_CELLS: tuple[OpOverload, ...] = (
    *(_aten.lstm_cell.default, _aten.gru_cell.default, _aten.rnn_tanh_cell.default, _aten.rnn_relu_cell.default),
)
"""One step of a recurrent layer."""
EMBEDDINGS: tuple[OpOverload, ...] = (
    *(_aten.embedding.default, _aten.embedding_bag.padding_idx, _aten.embedding_bag.default),
)
NORMALIZATIONS: tuple[OpOverload, ...] = (
    *(_aten.batch_norm.default, _aten._native_batch_norm_legit_no_training.default),
    *(_aten.layer_norm.default, _aten.native_layer_norm.default, _aten.rms_norm.default),
    *(_aten.group_norm.default, _aten.native_group_norm.default, _aten.instance_norm.default),
)
