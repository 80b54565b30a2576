"""The operators that hold most of a model's arithmetic, with every overload that exported graphs call."""

import torch

from qspec_core._torch import OpOverload

__all__ = ["CONVOLUTIONS", "LAYERS", "LINEARS", "TRANSPOSED"]

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
"""All layers, including `aten.convolution`, which decomposed graphs call for every convolution."""
