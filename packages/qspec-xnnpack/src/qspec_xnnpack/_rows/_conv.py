"""Convolution family: int8 by int8, accumulated in int32. The kernels clamp when they write the result."""

from functools import partial

import torch
from torch._ops import OpOverload
from torch.fx import Node

from qspec_core.graph import argument
from qspec_core.patterns import DELEGATED, Flow, Mode, PreOp, Reason, Row, activation, bias, weight
from qspec_xnnpack._rows._checks import constant_bias, shape_of
from qspec_xnnpack._rows._post_ops import HARDTANH, RELU
from qspec_xnnpack._rows._specs import eight_bits, one_group, one_image

__all__ = ["ROWS"]

aten = torch.ops.aten
_STATIC = frozenset({Mode.STATIC})


def _spatial_zero_pad(node: Node, *, spatial: int) -> Reason | None:
    """Decline a pad that the kernel cannot do: it adds zeros, to spatial dimensions, and crops nothing."""
    sides = argument(node, "pad")
    if argument(node, "mode") != "constant" or argument(node, "value") not in (None, 0):
        return Reason.unsupported(
            f"the pad is of mode {argument(node, 'mode')!r} with value {argument(node, 'value')}; the kernel adds zeros"
        )
    if len(sides) > 2 * spatial or any(not isinstance(side, int) or side < 0 for side in sides):
        return Reason.unsupported(
            f"pad={sides} crops, pads other than spatial dimensions, or is known only when the model runs"
        )
    return None


def _batched(node: Node, *, spatial: int) -> Reason | None:
    """Decline an input without batch dimension: it decomposes into a squeeze, which the delegate refuses."""
    shape = shape_of(node)
    if shape is None or len(shape) == spatial + 2:
        return None
    return Reason.unsupported(f"the input has no batch dimension, the output has rank {len(shape)}")


def _conv(spatial: int, anchor: OpOverload) -> Row:
    # Before a dynamic convolution, ExecuTorch 1.5.1 writes a float pad that its own runtime fails to run.
    pad = PreOp(aten.pad.default, check=partial(_spatial_zero_pad, spatial=spatial), modes=_STATIC)
    return Row(
        name=f"conv{spatial}d",
        anchor=anchor,
        operands=(
            activation("input", absorbs=(pad,), refuses=one_image),
            weight("weight", ch_axis=0, refuses=eight_bits),
            # Bias stays float: the delegate quantizes it, with the product of the two scales.
            bias("bias"),
        ),
        chains=((HARDTANH,), (RELU,), ()),
        flow=Flow.STARTS,
        modes=_STATIC if spatial == 1 else _STATIC | {Mode.DYNAMIC},
        lower=DELEGATED,
        checks=(partial(_batched, spatial=spatial), constant_bias),
    )


def _transposed(spatial: int, anchor: OpOverload) -> Row:
    return Row(
        name=f"conv_transpose{spatial}d",
        anchor=anchor,
        operands=(
            activation("input", refuses=one_image),
            weight("weight", ch_axis=1, refuses=one_group),
            bias("bias"),
        ),
        chains=((HARDTANH,), (RELU,), ()),
        flow=Flow.STARTS,
        modes=_STATIC if spatial == 1 else _STATIC | {Mode.DYNAMIC},
        lower=DELEGATED,
        checks=(partial(_batched, spatial=spatial), constant_bias),
    )


ROWS = (
    _conv(2, aten.conv2d.default),
    _conv(1, aten.conv1d.default),
    _transposed(2, aten.conv_transpose2d.input),
    _transposed(1, aten.conv_transpose1d.default),
)
