"""Lowering of transposed convolutions, for which torch has no integer kernel, to plain convolutions.

Along one dimension of stride s, output s*i + r is the sum over j of x[i - j] * w[s*j + r]. For each phase r this is a
plain convolution of ceil(k / s) taps. One convolution computes all s phases as s times as many channels, which are then
interleaved. No inserted zero is multiplied. Measured on AVX2: 0.39 to 0.88 of the time of float in Inductor.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch.fx import Node

from qspec_core.graph import argument, constant_value, expand_integers, require_tensor_value
from qspec_core.lowering import Lowering
from qspec_core.patterns import Match, Note, Reason
from qspec_x86._lowering._bounds import Output, fused_output
from qspec_x86._lowering._geometry import Geometry
from qspec_x86._lowering._kernels import insert_qconv
from qspec_x86._lowering._layer import Layer, finish, read_layer, requantize
from qspec_x86._lowering._layouts import reshaped
from qspec_x86._lowering._options import Options
from qspec_x86._lowering._weights import Weight

__all__ = ["Phases", "lower_transposed", "phases_of"]

aten = torch.ops.aten
_HEIGHT = 2
"""Dimension of size 1 that makes a 1d convolution a 2d one."""
_VOLUME = 3


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
    """Phases of a transposed convolution along each dimension; None if no plain convolution computes it."""
    weight = require_tensor_value(argument(node, "weight"))
    kernel = tuple(weight.shape[2:])
    names = ("stride", "padding", "output_padding", "dilation")
    numbers = [expand_integers(argument(node, name), len(kernel)) for name in names]
    found = [Phases.along(*values) for values in zip(kernel, *numbers, strict=True)]
    phases = tuple(phase for phase in found if phase is not None)
    return phases if len(phases) == len(kernel) else None


def lower_transposed(match: Match, lowering: Lowering[Options]) -> Reason | Note | None:
    """Lower a transposed convolution with its post-ops."""
    phases, groups = phases_of(match.anchor), int(argument(match.anchor, "groups"))
    if phases is None:
        return Reason.unsupported("no plain convolution has its stride and dilation, or its padding")
    if len(phases) == 1:
        phases = (Phases(1, 1, 1, 0, 0, 0), *phases)

    def arranged(weight: Weight) -> Weight:
        return _arranged(weight, phases, groups)

    layer = read_layer(match, lowering, arranged)
    if isinstance(layer, Reason):
        return layer
    before, (output, quantized) = match.tail, fused_output(match.links, requantize(lowering, match.tail))
    if len(phases) == _VOLUME and output.attr != "none":  # the 3d kernel has no post-op: the compiler fuses it
        before, output, quantized = match.anchor, Output(), None
    result = _convolve(match, lowering, layer, phases, output, before)
    finish(lowering, before, result, quantized)
    return layer.note


def _arranged(weight: Weight, phases: tuple[Phases, ...], groups: int) -> Weight:
    """Weight of the plain convolution.

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


def _bias(
    lowering: Lowering[Options], bias: Node | None, phases: tuple[Phases, ...], groups: int, before: Node
) -> Node | None:
    """Repeat the bias for each phase: (groups * outputs,) -> (groups * phases * outputs,)."""
    if bias is None:
        return None
    shape, times = [groups, 1, -1], [1, prod(phase.stride for phase in phases), 1]
    value = constant_value(lowering.module, bias)
    if value is not None:
        return lowering.constant("_x86_bias", value.detach().reshape(shape).repeat(times).reshape(-1), before)
    phased = lowering.call(before, aten.repeat.default, lowering.call(before, aten.reshape.default, bias, shape), times)
    return lowering.call(before, aten.reshape.default, phased, [-1])


def _convolve(
    match: Match, lowering: Lowering[Options], layer: Layer, phases: tuple[Phases, ...], output: Output, before: Node
) -> Node:
    groups, x, is_line = int(argument(match.anchor, "groups")), layer.x.integers, match.anchor.target is _LINE
    if is_line:
        x = reshaped(lowering, before, x, aten.unsqueeze.default, _HEIGHT)
    ones, paddings = (1,) * len(phases), tuple(phase.padding for phase in phases)
    geometry = Geometry(ones, paddings, tuple(phase.dilation for phase in phases), groups)
    bias = _bias(lowering, layer.bias, phases, groups, before)
    result = insert_qconv(lowering, before, x, layer.x, layer.weight, bias, geometry, output)
    result = _interleaved(lowering, before, result, phases, groups, layer.weight.integers.shape[0])
    return lowering.call(before, aten.squeeze.dim, result, _HEIGHT) if is_line else result


_LINE = aten.conv_transpose1d.default


def _interleaved(
    lowering: Lowering[Options], before: Node, result: Node, phases: tuple[Phases, ...], groups: int, channels: int
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
        outputs = channels // (groups * prod(strides))
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
