"""Checks that rows of several families share."""

from torch import Tensor
from torch.fx import Node

from qspec_core.graph import argument
from qspec_core.patterns import Reason

__all__ = ["constant_bias", "shape_of", "static_shape"]


def shape_of(node: object) -> tuple[int, ...] | None:
    """Shape of a node's value, which may hold symbols; None if the graph does not say."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else None


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
