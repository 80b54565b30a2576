"""Transposed convolutions as plain ones, for devices without an integer kernel for them.

Along one dimension of stride s, output s*i + r is the sum over j of x[i - j] * w[s*j + r]. For each phase r this is a
plain convolution of ceil(k / s) taps. One convolution computes all s phases as s times as many channels, which are then
interleaved. No inserted zero is multiplied.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx import Node

from qspec_core.graph import argument, constant_value, expand_integers, require_tensor_value
from qspec_core.lowering._geometry import Geometry
from qspec_core.lowering._moves import insert_reshape
from qspec_core.lowering._rows import Lowering
from qspec_core.lowering._weights import Weight

__all__ = ["Phases", "arrange_phases", "insert_phases", "phases_of"]

aten = torch.ops.aten
_HEIGHT = 2
"""Dimension of size 1 that makes a 1d convolution a 2d one."""


@dataclass(frozen=True)
class Phases:
    """The plain convolution along one dimension, and the cut after its phases are interleaved.

    Args:
        stride: number of phases, which are interleaved.
        taps: taps of each phase.
        dilation: distance between two taps; 1 unless the stride is 1.
        padding: zeros at each end of the input.
        front: results cut off at the start.
        back: results cut off at the end.
    """

    stride: int
    taps: int
    dilation: int
    padding: int
    front: int
    back: int

    @classmethod
    def along(cls, kernel: int, stride: int, padding: int, output_padding: int, dilation: int) -> "Phases | None":
        """Convert the arguments of a transposed convolution; None if no plain convolution computes it."""
        if stride > 1 and dilation > 1:
            return None
        reach = dilation * (kernel - 1) + 1
        blocks = -(-reach // stride)
        # Blocks of `stride` results that both cuts would remove are not computed, the same number at each end.
        needed = -(-(reach + output_padding - padding) // stride)
        skipped = min(padding // stride, blocks - needed, blocks - 1)
        if skipped < 0:
            return None
        back = stride * (blocks - skipped) + padding - reach - output_padding
        return cls(stride, -(-kernel // stride), dilation, blocks - 1 - skipped, padding - skipped * stride, back)


def phases_of(node: Node) -> tuple[Phases, ...] | None:
    """Phases of a transposed convolution along each dimension; None if no plain convolution computes it.

    A convolution over one dimension is one of height 1.
    """
    weight = require_tensor_value(argument(node, "weight"))
    kernel = tuple(weight.shape[2:])
    names = ("stride", "padding", "output_padding", "dilation")
    numbers = [expand_integers(argument(node, name), len(kernel)) for name in names]
    found = [Phases.along(*values) for values in zip(kernel, *numbers, strict=True)]
    phases = tuple(phase for phase in found if phase is not None)
    if len(phases) != len(kernel):
        return None
    return (Phases(1, 1, 1, 0, 0, 0), *phases) if len(kernel) == 1 else phases


def arrange_phases(weight: Weight, phases: tuple[Phases, ...], groups: int) -> Weight:
    """Arrange the weight of a transposed convolution for the plain one.

    (inputs, outputs / groups, kernel...) -> (groups * phases * outputs / groups, inputs / groups, taps...)
    """
    integers, count = weight.integers, len(phases)
    inputs, outputs = integers.shape[:2]
    if integers.dim() == count + 1:
        integers = integers.unsqueeze(_HEIGHT)
    missing = [phase.taps * phase.stride - size for phase, size in zip(phases, integers.shape[2:], strict=True)]
    padded = torch.nn.functional.pad(integers, [side for size in reversed(missing) for side in (0, size)])
    split = [size for phase in phases for size in (phase.taps, phase.stride)]
    # (groups, inputs / groups, outputs, taps, stride, taps, stride, ...)
    parts = padded.reshape(groups, inputs // groups, outputs, *split)
    taps, strides = [3 + 2 * i for i in range(count)], [4 + 2 * i for i in range(count)]
    # (groups, strides..., outputs, inputs / groups, taps...)
    moved = parts.permute(0, *strides, 2, 1, *taps).flip(tuple(range(-count, 0)))
    plain = moved.reshape(-1, inputs // groups, *(phase.taps for phase in phases)).contiguous()
    return Weight(plain, weight.scale.repeat(groups * prod(phase.stride for phase in phases)))


def insert_phases(
    lowering: Lowering[Any],
    anchor: Node,
    before: Node,
    x: Node,
    bias: Node | None,
    phases: tuple[Phases, ...],
    convolve: Callable[[Node, Node | None, Geometry], Node],
) -> Node:
    """Insert the plain convolution of a transposed one, and interleave its phases.

    Args:
        lowering: the graph.
        anchor: the transposed convolution.
        before: node to insert nodes before.
        x: node of the input's integers.
        bias: node of the bias; None where there is none.
        phases: from `phases_of`.
        convolve: `(x, bias, geometry) -> result`, inserts the convolution, whose weight is that of `arrange_phases`.
    Returns: node of the result. The caller sets its metadata.
    """
    groups, is_line = int(argument(anchor, "groups")), anchor.target is aten.conv_transpose1d.default
    channels = groups * require_tensor_value(argument(anchor, "weight")).shape[1]
    if is_line:
        x = insert_reshape(lowering, before, x, aten.unsqueeze.default, _HEIGHT)
    ones, paddings = (1,) * len(phases), tuple(phase.padding for phase in phases)
    geometry = Geometry(ones, paddings, tuple(phase.dilation for phase in phases), groups)
    result = convolve(x, _repeated(lowering, bias, phases, groups, before), geometry)
    result = _interleaved(lowering, before, result, phases, groups, channels)
    return lowering.call(before, aten.squeeze.dim, result, _HEIGHT) if is_line else result


def _repeated(
    lowering: Lowering[Any], bias: Node | None, phases: tuple[Phases, ...], groups: int, before: Node
) -> Node | None:
    """Repeat the bias for each phase: (groups * outputs,) -> (groups * phases * outputs,)."""
    if bias is None:
        return None
    shape, times = [groups, 1, -1], [1, prod(phase.stride for phase in phases), 1]
    value = constant_value(lowering.module, bias)
    if value is not None:
        return lowering.constant("_bias", value.detach().reshape(shape).repeat(times).reshape(-1), before)
    phased = lowering.call(before, aten.repeat.default, lowering.call(before, aten.reshape.default, bias, shape), times)
    return lowering.call(before, aten.reshape.default, phased, [-1])


def _interleaved(
    lowering: Lowering[Any], before: Node, result: Node, phases: tuple[Phases, ...], groups: int, channels: int
) -> Node:
    """Interleave the phases, and cut to size. The memory layout stays channels-last.

    (batch, groups * phases * outputs, sizes...) -> (batch, groups * outputs, sizes * strides...)
    """
    strides, count = [phase.stride for phase in phases], len(phases)

    def call(target: object, *arguments: object) -> Node:
        return lowering.call(before, target, *arguments)

    if prod(strides) > 1:
        # (batch, sizes..., channels)
        result = call(aten.permute.default, result, [0, *range(2, count + 2), 1])
        outputs = channels // groups
        # (batch, sizes..., groups, strides..., outputs)
        result = call(aten.unflatten.int, result, count + 1, [groups, *strides, outputs])
        order = [place for i in range(count) for place in (1 + i, 2 + count + i)]
        # (batch, size, stride, size, stride, ..., groups, outputs)
        result = call(aten.permute.default, result, [0, *order, count + 1, 2 * count + 2])
        # (batch, size * stride, size * stride, ..., groups * outputs)
        for dim in range(1, count + 2):
            result = call(aten.flatten.using_ints, result, dim, dim + 1)
        result = call(aten.permute.default, result, [0, count + 1, *range(1, count + 1)])
    for dim, phase in enumerate(phases, start=2):
        if phase.front or phase.back:
            end = -phase.back if phase.back else torch.iinfo(torch.int64).max
            result = call(aten.slice.Tensor, result, dim, phase.front, end)
    return result
