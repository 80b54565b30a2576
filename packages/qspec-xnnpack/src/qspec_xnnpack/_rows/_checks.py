"""Checks that rows of several families share."""

import math

import torch
from torch.fx import Node

from qspec_core.graph import argument, constant_value, tensor_value
from qspec_core.patterns import Reason

__all__ = ["constant_bias", "finite_operands", "shape_of", "static_shape", "taken_dtype"]


def shape_of(node: object) -> tuple[int, ...] | None:
    """Shape of a node's value, which may hold symbols; None if the graph does not say."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def constant_bias(node: Node) -> Reason | None:
    """Decline a computed bias: the kernels pack the bias before the model runs."""
    value = argument(node, "bias")
    if isinstance(value, Node) and value.op != "get_attr":
        return Reason.unsupported("operand bias is computed, not a constant")
    return None


def static_shape(node: Node) -> Reason | None:
    """Decline a shape that is known only when the model runs: the delegate moves no data into such shapes."""
    shape = shape_of(node)
    if shape is not None and any(not isinstance(size, int) for size in shape):
        return Reason.unsupported(f"the shape {shape} is known only when the model runs")
    return None


def taken_dtype(node: Node) -> Reason | None:
    """Decline every floating-point type that the delegate does not compute in."""
    value = tensor_value(node)
    if value is None or value.dtype in (torch.float32, torch.float16):
        return None
    return Reason.unsupported(f"{value.dtype}: the delegate computes in torch.float32 and torch.float16")


def finite_operands(node: Node) -> Reason | None:
    """Decline an operand that is infinite by construction, such as the mask of attention: it has no scale."""
    for name in ("self", "other"):
        if _is_infinite(argument(node, name)):
            return Reason.unsupported(f"operand {name} holds infinite values, for which there is no scale")
    return None


aten = torch.ops.aten
# Operators that write a number into a tensor, each with the argument that holds it.
_FILLS = {
    aten.full.default: "fill_value",
    aten.full_like.default: "fill_value",
    aten.masked_fill.Scalar: "value",
    aten.where.ScalarSelf: "self",
    aten.where.ScalarOther: "other",
    aten.where.Scalar: "other",
    aten.scalar_tensor.default: "s",
}
_PASSING = {
    aten.where.self,
    aten.masked_fill.Tensor,
    aten.expand.default,
    aten.view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.triu.default,
    aten.tril.default,
    aten.clone.default,
    aten.to.dtype,
    aten.index.Tensor,
}
_FARTHEST = 16
"""Operators between an infinite number and its reader that are searched."""


def _is_infinite(operand: object) -> bool:
    pending = [(operand, 0)]
    while pending:
        source, steps = pending.pop()
        if not isinstance(source, Node) or steps > _FARTHEST:
            continue
        if source.op == "get_attr" and source.graph.owning_module is not None:
            value = constant_value(source.graph.owning_module, source)
            if value is not None and value.is_floating_point() and bool(value.isinf().any()):
                return True
        elif source.op == "call_function" and source.target in _FILLS:
            number = argument(source, _FILLS[source.target])
            if isinstance(number, int | float) and math.isinf(number):
                return True
        if source.op == "call_function" and (source.target in _FILLS or source.target in _PASSING):
            pending += [(each, steps + 1) for each in source.all_input_nodes]
    return False
