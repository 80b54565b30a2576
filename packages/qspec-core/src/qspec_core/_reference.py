"""Write a converted graph in integer arithmetic of plain aten operators, to check what a device computes.

Layers multiply and add in int32; one float32 factor per channel rescales the sum to the scale of the output. Of the
`quantized_decomposed` operators only `choose_qparams` and those by group and by token are left.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qspec_core import ops
from qspec_core._torch import OpOverload
from qspec_core.graph import (
    argument,
    bodies,
    constant_value,
    derived_meta,
    graph_modules,
    is_call,
    is_float,
    require_tensor_value,
    wrap_graph,
)
from qspec_core.graph._sinking import lift_constants
from qspec_core.lowering import Lowering, Quantized, lower_rows, quantized_operand, quantized_value
from qspec_core.patterns import (
    Flow,
    Match,
    Mode,
    Outputs,
    PatternTable,
    PostOp,
    Reason,
    Row,
    activation,
    bias,
    weight,
)

__all__ = ["REFERENCE", "to_reference"]

aten = torch.ops.aten


class _Writer:
    """Inserts operators before a node, with the metadata of the node `like` that they replace."""

    def __init__(self, context: Lowering[None], before: Node, like: Node) -> None:
        self._context, self._before, self._like = context, before, like

    def __call__(self, target: OpOverload, *arguments: Any) -> Node:
        """Insert a call."""
        node = self._context.call(self._before, target, *arguments)
        node.meta = derived_meta(self._like, "to_reference")
        node.meta.pop("val", None)
        values = [item.meta.get("val") if isinstance(item, Node) else item for item in arguments]
        if not any(isinstance(item, Node) and value is None for item, value in zip(arguments, values, strict=True)):
            node.meta["val"] = target(*values)
        return node

    def constant(self, value: Tensor) -> Node:
        """Insert a constant."""
        return self._context.constant("_reference_constant", value, self._before)

    def centered(self, value: Quantized) -> Node:
        """Integers minus their zero point, in int32."""
        wide = self(aten.to.dtype, value.integers, torch.int32)
        if value.zero_point is None or (isinstance(value.zero_point, int) and value.zero_point == 0):
            return wide
        zero_point: Any = value.zero_point
        if isinstance(zero_point, Node):
            zero_point = self(aten.to.dtype, zero_point, torch.int32)
            zero_point = self._along(zero_point, value)
        return self(aten.sub.Tensor, wide, zero_point)

    def real(self, value: Quantized) -> Node:
        """The real numbers: (integers - zero point) * scale."""
        if isinstance(value.zero_point, Node) and is_float(value.zero_point):
            steps = self(aten.sub.Tensor, value.integers, self._along(value.zero_point, value))
        else:
            steps = self(aten.to.dtype, self.centered(value), torch.float32)
        return self(aten.mul.Tensor, steps, self.scale(value))

    def scale(self, value: Quantized) -> Any:  # a number or a node
        """The scale, in a shape that broadcasts against the integers."""
        if not isinstance(value.scale, Node):
            return value.scale
        return self._along(self(aten.to.dtype, value.scale, torch.float32), value)

    def _along(self, parameters: Node, value: Quantized) -> Node:
        """Parameters by channel in a shape that broadcasts against the tensor: (channels,) -> (1, channels, 1...)."""
        if value.ch_axis is None:
            return parameters
        rank = require_tensor_value(value.integers).dim()
        return self(aten.view.default, parameters, [-1 if axis == value.ch_axis else 1 for axis in range(rank)])

    def rounded(self, real: Node, to: Quantized) -> Node:
        """The integers of `to`, from real numbers divided by its scale."""
        shifted = self(aten.round.default, real)
        if to.zero_point is not None and to.zero_point != 0:
            zero_point: Any = to.zero_point
            if isinstance(zero_point, Node):
                zero_point = self._along(self(aten.to.dtype, zero_point, torch.float32), to)
            shifted = self(aten.add.Tensor, shifted, zero_point)
        clamped = self(aten.clamp.default, shifted, to.quant_min, to.quant_max)
        return self(aten.to.dtype, clamped, to.dtype)


def _finish(match: Match, context: Lowering[None], write: _Writer, real: Callable[[float | None], Node]) -> None:
    """Replace a match: by its integers if all readers quantize it with the same parameters, else by its real value.

    `real(scale)` writes the result divided by the output's scale; `real(None)` writes the result itself.
    """
    tail, to = match.tail, context.requantize(match.tail)
    if to is None or isinstance(to.scale, Node):
        tail.replace_all_uses_with(real(None))
    else:
        context.replace_quantizes(tail, write.rounded(real(float(to.scale)), to))


def _lower_layer(match: Match, context: Lowering[None], tail: tuple[Any, ...]) -> Reason | None:
    """Lower linear and convolution to int32 sums. In static mode the bias is rounded to the step of the sum.

    Args:
        tail: trailing dimensions of size 1: (channels, *tail) broadcasts against the result.
    """
    inputs, weights = quantized_operand(match, "input"), quantized_operand(match, "weight")
    if weights.ch_axis not in (None, 0):
        return Reason.unsupported(f"weight channels on axis {weights.ch_axis}")
    offset = match.operand("bias")
    write = _Writer(context, match.tail, match.tail)
    step = weights.scale if not isinstance(weights.scale, Node) else context.tensor(weights.scale).float()
    step = torch.as_tensor(step, dtype=torch.float32).reshape(-1, *tail)  # (channels,) -> (channels, *tail)
    total = _sums(match.anchor, write, write.centered(inputs), write.centered(weights))
    offset_value = constant_value(context.module, offset)
    if offset is not None and offset_value is None:
        return Reason.unsupported("the bias is computed, not a constant")
    is_static = not isinstance(inputs.scale, Node)
    if is_static:
        step = step * float(inputs.scale)  # type: ignore[arg-type]  # a number, by is_static
        if offset_value is not None:
            whole = torch.round(offset_value.detach().reshape(-1, *tail) / step).to(torch.int32)
            total = write(aten.add.Tensor, total, write.constant(whole))
    if match.links and is_static:
        total = write(aten.relu.default, total)

    def real(scale: float | None) -> Node:
        sums = write(aten.to.dtype, total, torch.float32)
        factor = write.constant(step if scale is None else step / scale)
        if is_static:
            return write(aten.mul.Tensor, sums, factor)
        value = write(aten.mul.Tensor, sums, write(aten.mul.Tensor, factor, write.scale(inputs)))
        if offset_value is not None:
            shift = offset_value.detach().reshape(-1, *tail)
            value = write(aten.add.Tensor, value, write.constant(shift if scale is None else shift / scale))
        return write(aten.relu.default, value) if match.links else value

    _finish(match, context, write, real)
    return None


def _sums(anchor: Node, write: _Writer, left: Node, right: Node) -> Node:
    """Insert the layer on int32 operands."""
    if not is_call(anchor, aten.conv2d.default):
        return write(aten.linear.default, left, right)
    stride, padding, dilation, groups = (argument(anchor, n) for n in ("stride", "padding", "dilation", "groups"))
    # torch's dilated convolution takes no integers, so zeros are inserted between the weights instead.
    right = _spread(write, _spread(write, right, 3, dilation[-1]), 2, dilation[0])
    return write(aten.conv2d.default, left, right, None, stride, padding, [1, 1], groups)


def _spread(write: _Writer, weight: Node, axis: int, distance: int) -> Node:
    """Insert `distance - 1` zeros between the entries along an axis."""
    if distance == 1:
        return weight
    shape = list(require_tensor_value(weight).shape)
    # (..., n, ...) -> (..., n, 1, ...) -> (..., n, distance, ...) -> (..., n * distance, ...), less the last zeros
    rows = write(aten.view.default, weight, [*shape[: axis + 1], 1, *shape[axis + 1 :]])
    after = [0, 0] * (len(shape) - axis - 1)
    padded = write(aten.constant_pad_nd.default, rows, [*after, 0, distance - 1])
    flat = write(aten.reshape.default, padded, [*shape[:axis], shape[axis] * distance, *shape[axis + 1 :]])
    return write(aten.slice.Tensor, flat, axis, 0, shape[axis] * distance - distance + 1)


def _lower_add(match: Match, context: Lowering[None]) -> Reason | None:
    """Lower a sum of two tensors with different scales: each is rescaled to the scale of the output."""
    if argument(match.anchor, "alpha") != 1:
        return Reason.unsupported("alpha is not 1")
    terms = [quantized_operand(match, name) for name in ("self", "other")]
    if any(isinstance(term.scale, Node) for term in terms):
        return Reason.unsupported("a scale that is computed at run time, or by channel")
    write = _Writer(context, match.tail, match.tail)

    def real(scale: float | None) -> Node:
        scaled = [
            write(aten.mul.Tensor, write.centered(term), float(term.scale) / (1.0 if scale is None else scale))  # type: ignore[arg-type]  # numbers, by the check above
            for term in terms
        ]
        total = write(aten.add.Tensor, *scaled)
        return write(aten.relu.default, total) if match.links else total

    _finish(match, context, write, real)
    return None


def _lower_max_pool(match: Match, context: Lowering[None]) -> Reason | None:
    """Lower a max pool to one of the integers: scales are positive, so the largest integer is the largest value."""
    inputs, to = quantized_operand(match, "self"), context.requantize(match.tail)
    if inputs.ch_axis is not None:
        return Reason.unsupported(f"input channels on axis {inputs.ch_axis}")
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    write = _Writer(context, match.tail, match.tail)
    geometry = [argument(match.anchor, name) for name in names]
    pooled = write(aten.max_pool2d.default, inputs.integers, *geometry)
    if to is not None and to.parameters == inputs.parameters:
        context.replace_quantizes(match.tail, pooled)
    else:
        match.tail.replace_all_uses_with(write.real(replace(inputs, integers=pooled)))
    return None


_LAYER = (activation("input"), weight("weight", ch_axis=0), bias("bias"))
_CHAINS = ((PostOp(aten.relu.default, "relu"),), ())
_LAYER_MODES = frozenset({Mode.STATIC, Mode.DYNAMIC})
_STATIC = frozenset({Mode.STATIC})
_OF_LINEAR, _OF_CONVOLUTION = partial(_lower_layer, tail=()), partial(_lower_layer, tail=(1, 1))
REFERENCE = PatternTable(
    rows=(
        Row("linear", aten.linear.default, _LAYER, Flow.STARTS, _OF_LINEAR, chains=_CHAINS, modes=_LAYER_MODES),
        Row("conv2d", aten.conv2d.default, _LAYER, Flow.STARTS, _OF_CONVOLUTION, chains=_CHAINS, modes=_LAYER_MODES),
        Row("add", aten.add.Tensor, (activation("self"), activation("other")), Flow.JOINS, _lower_add, chains=_CHAINS),
        Row("max_pool2d", aten.max_pool2d.default, (activation("self"),), Flow.SHARES, _lower_max_pool),
    ),
    outputs=Outputs.DEMAND,
)
"""The operators that have an integer form in aten."""


def to_reference(converted: GraphModule) -> GraphModule:
    """Write a converted graph in integer arithmetic of plain aten operators. The input is not changed.

    Args:
        converted: a graph from `convert_pt2e`.
    Returns: a module in which the result of each operator differs from the converted one's by at most one step of its
        scale: sums are rounded once, from int32, and a static bias is rounded to the step of the sum.
    Cost: O(nodes + edges). int32 products have no fast kernels in torch: this form is for checking, not for speed.
    """
    module = lower_rows(converted, REFERENCE, target="reference").module
    for _, body in graph_modules(module):
        context = Lowering(body, "reference", None)
        for node in list(body.graph.nodes):
            if is_call(node, ops.QUANTIZE, ops.QUANTIZE_DYNAMIC, ops.QUANTIZE_PER_CHANNEL):
                _write_quantize(node, context)
            elif is_call(node, ops.DEQUANTIZE, ops.DEQUANTIZE_DYNAMIC, ops.DEQUANTIZE_PER_CHANNEL):
                _write_dequantize(node, context)
        body.graph.eliminate_dead_code()
        body.recompile()
    if bodies(module):
        lift_constants(module)
    return wrap_graph(module, module.graph)


def _write_quantize(node: Node, context: Lowering[None]) -> None:
    to = quantized_value(node)
    if to is None:
        return
    write = _Writer(context, node, node)
    real: Node = argument(node, "input")
    scale = write.scale(to)
    inverse = write(aten.reciprocal.default, scale) if isinstance(scale, Node) else 1.0 / scale
    node.replace_all_uses_with(write.rounded(write(aten.mul.Tensor, real, inverse), to))
    context.module.graph.erase_node(node)


def _write_dequantize(node: Node, context: Lowering[None]) -> None:
    value = quantized_value(node)
    if value is None:
        return
    write = _Writer(context, node, node)
    node.replace_all_uses_with(write.real(value))
    context.module.graph.erase_node(node)
