"""Transposed convolutions, which torch has no integer kernel for, through that of plain ones.

Along one dimension of stride s, output s*i + r is the sum over j of x[i - j] * w[s*j + r]: for each remainder r a plain
convolution of ceil(k / s) taps. One convolution computes all of them, as s times as many channels, which are then put
in turns; nothing is multiplied by an inserted zero. Measured on AVX2, against float under Inductor: 0.39 to 0.88.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch.fx import Node

from qspec_core.graph import argument, constant_value, expand_integers
from qspec_core.lowering import Lowering
from qspec_core.patterns import Match, Note, Reason
from qspec_x86._lowering._bounds import Output, fused_output
from qspec_x86._lowering._kernels import Geometry, insert_qconv
from qspec_x86._lowering._layer import Layer, finish, read_layer, requantize, reshaped
from qspec_x86._lowering._options import Options
from qspec_x86._lowering._weights import Weight

__all__ = ["Turns", "lower_transposed", "turns_of"]

aten = torch.ops.aten
_HEIGHT = 2
"""Dimension that a convolution over one dimension gets, of size 1."""
_VOLUME = 3


@dataclass(frozen=True)
class Turns:
    """The plain convolution along one dimension, and what is cut off its results put in turns.

    Args:
        stride: how many results take turns.
        taps: taps of each.
        dilation: distance of two taps; 1 unless the stride is 1.
        padding: zeros at either end of the input.
        front: results cut off in front.
        back: results cut off behind.
    """

    stride: int
    taps: int
    dilation: int
    padding: int
    front: int
    back: int

    @classmethod
    def along(cls, kernel: int, stride: int, padding: int, output_padding: int, dilation: int) -> "Turns | None":
        """From a transposed convolution's numbers; None if no plain one gives the same."""
        if stride > 1 and dilation > 1:
            return None
        reach = dilation * (kernel - 1) + 1
        blocks = -(-reach // stride)
        # Whole blocks of results are not computed in front, nor as many behind, where both are cut off.
        needed = -(-(reach + output_padding - padding) // stride)
        skipped = min(padding // stride, blocks - needed, blocks - 1)
        if skipped < 0:
            return None
        back = stride * (blocks - skipped) + padding - reach - output_padding
        return cls(stride, -(-kernel // stride), dilation, blocks - 1 - skipped, padding - skipped * stride, back)


def turns_of(node: Node) -> tuple[Turns, ...] | None:
    """The turns along each dimension of a transposed convolution; None if one has none."""
    weight = argument(node, "weight").meta["val"]
    kernel = tuple(weight.shape[2:])
    names = ("stride", "padding", "output_padding", "dilation")
    numbers = [expand_integers(argument(node, name), len(kernel)) for name in names]
    found = [Turns.along(*values) for values in zip(kernel, *numbers, strict=True)]
    turns = tuple(turn for turn in found if turn is not None)
    return turns if len(turns) == len(kernel) else None


def lower_transposed(match: Match, lowering: Lowering[Options]) -> Reason | Note | None:
    """Lower a transposed convolution with its clamp or curve."""
    turns, groups = turns_of(match.anchor), int(argument(match.anchor, "groups"))
    if turns is None:
        return Reason.unsupported("its stride and dilation, or its padding, have no plain form")
    if len(turns) == 1:
        turns = (Turns(1, 1, 1, 0, 0, 0), *turns)

    def arranged(weight: Weight) -> Weight:
        return _arranged(weight, turns, groups)

    layer = read_layer(match, lowering, arranged)
    if isinstance(layer, Reason):
        return layer
    before, (output, quantized) = match.tail, fused_output(match.links, requantize(lowering, match.tail))
    if len(turns) == _VOLUME and output.attr != "none":  # its kernel has no post-op: the compiler fuses what follows
        before, output, quantized = match.anchor, Output(), None
    result = _convolve(match, lowering, layer, turns, output, before)
    finish(lowering, before, result, quantized)
    return layer.note


def _arranged(weight: Weight, turns: tuple[Turns, ...], groups: int) -> Weight:
    """The plain convolution's weight: (groups, turns, outputs of a group) by (inputs of a group, taps)."""
    integers, count = weight.integers, len(turns)
    inputs, outputs = integers.shape[:2]
    if integers.dim() == count + 1:
        integers = integers.unsqueeze(_HEIGHT)
    missing = [turn.taps * turn.stride - size for turn, size in zip(turns, integers.shape[2:], strict=True)]
    padded = torch.nn.functional.pad(integers, [side for size in reversed(missing) for side in (0, size)])
    split = [size for turn in turns for size in (turn.taps, turn.stride)]
    parts = padded.reshape(groups, inputs // groups, outputs, *split)
    taps, strides = [3 + 2 * i for i in range(count)], [4 + 2 * i for i in range(count)]
    moved = parts.permute(0, *strides, 2, 1, *taps).flip(tuple(range(-count, 0)))
    plain = moved.reshape(-1, inputs // groups, *(turn.taps for turn in turns)).contiguous()
    return Weight(plain, weight.scale.repeat(groups * prod(turn.stride for turn in turns)))


def _bias(
    lowering: Lowering[Options], bias: Node | None, turns: tuple[Turns, ...], groups: int, before: Node
) -> Node | None:
    """The bias once for each turn, in the order of the channels."""
    if bias is None:
        return None
    shape, times = [groups, 1, -1], [1, prod(turn.stride for turn in turns), 1]
    value = constant_value(lowering.module, bias)
    if value is not None:
        return lowering.constant("_x86_bias", value.detach().reshape(shape).repeat(times).reshape(-1), before)
    turned = lowering.call(before, aten.repeat.default, lowering.call(before, aten.reshape.default, bias, shape), times)
    return lowering.call(before, aten.reshape.default, turned, [-1])


def _convolve(
    match: Match, lowering: Lowering[Options], layer: Layer, turns: tuple[Turns, ...], output: Output, before: Node
) -> Node:
    groups, x, is_line = int(argument(match.anchor, "groups")), layer.x.integers, match.anchor.target is _LINE
    if is_line:
        x = reshaped(lowering, before, x, aten.unsqueeze.default, _HEIGHT)
    ones, paddings = (1,) * len(turns), tuple(turn.padding for turn in turns)
    geometry = Geometry(ones, paddings, tuple(turn.dilation for turn in turns), groups)
    bias = _bias(lowering, layer.bias, turns, groups, before)
    result = insert_qconv(lowering, before, x, layer.x, layer.weight, bias, geometry, output)
    result = _in_turns(lowering, before, result, turns, groups, layer.weight.integers.shape[0])
    return lowering.call(before, aten.squeeze.dim, result, _HEIGHT) if is_line else result


_LINE = aten.conv_transpose1d.default


def _in_turns(
    lowering: Lowering[Options], before: Node, result: Node, turns: tuple[Turns, ...], groups: int, channels: int
) -> Node:
    """(batch, groups * turns * outputs, sizes...) as (batch, groups * outputs, sizes * strides...), cut to size, with
    its channels last in memory, as the kernel left them.
    """
    strides, count = [turn.stride for turn in turns], len(turns)

    def call(target: object, *arguments: object) -> Node:
        return lowering.call(before, target, *arguments)

    if prod(strides) > 1:
        result = call(aten.permute.default, result, [0, *range(2, count + 2), 1])
        outputs = channels // (groups * prod(strides))
        result = call(aten.unflatten.int, result, count + 1, [groups, *strides, outputs])
        turned = [place for i in range(count) for place in (1 + i, 2 + count + i)]
        result = call(aten.permute.default, result, [0, *turned, count + 1, 2 * count + 2])
        for dim in range(1, count + 2):
            result = call(aten.flatten.using_ints, result, dim, dim + 1)
        result = call(aten.permute.default, result, [0, count + 1, *range(1, count + 1)])
    for dim, turn in enumerate(turns, start=2):
        if turn.front or turn.back:
            end = -turn.back if turn.back else torch.iinfo(torch.int64).max
            result = call(aten.slice.Tensor, result, dim, turn.front, end)
    return result
