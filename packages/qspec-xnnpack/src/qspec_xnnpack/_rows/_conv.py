"""Convolution family: int8 by int8, accumulated in int32; the delegate clamps as it writes the result."""

import torch
from torch.fx import Node

from qspec_core.patterns import (
    DELEGATED,
    Flow,
    Mode,
    PreOp,
    Reason,
    Row,
    activation,
    argument,
    bias,
    weight,
)
from qspec_xnnpack._rows._checks import constant_bias, refused, shape_of
from qspec_xnnpack._rows._clamps import HARDTANH, RELU

__all__ = ["ROWS"]

aten = torch.ops.aten
_SPATIAL = 2


def _spatial_zero_pad(node: Node) -> Reason | None:
    """The kernel pads with its zero point, so only by zeros, only outwards, and only height and width."""
    sides = argument(node, "pad")
    if argument(node, "mode") != "constant" or argument(node, "value") not in (None, 0):
        return refused("the pad adds something else than zeros")
    if len(sides) > 2 * _SPATIAL or any(not isinstance(side, int) or side < 0 for side in sides):
        return refused(f"pad={sides} crops, reaches beyond height and width, or is not known beforehand")
    return None


def _batched(node: Node) -> Reason | None:
    """Without a batch dimension the convolution decomposes into a squeeze, which the delegate refuses."""
    shape = shape_of(node)
    if shape is None or len(shape) == _SPATIAL + 2:
        return None
    return refused(f"the input has no batch dimension, the output has rank {len(shape)}")


CONV2D = Row(
    name="conv2d",
    anchor=aten.conv2d.default,
    operands=(
        activation("input", absorbs=(PreOp(aten.pad.default, check=_spatial_zero_pad),)),
        weight("weight", ch_axis=0),
        # Bias stays float: the delegate quantizes it itself, with the product of the two scales.
        bias("bias"),
    ),
    chains=((HARDTANH,), (RELU,), ()),
    flow=Flow.STARTS,
    modes=frozenset({Mode.STATIC}),
    lower=DELEGATED,
    checks=(_batched, constant_bias),
)
ROWS = (CONV2D,)
