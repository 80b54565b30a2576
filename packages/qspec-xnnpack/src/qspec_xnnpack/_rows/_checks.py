"""Reasons that rows of several families share."""

from torch import Tensor
from torch.fx import Node

from qspec_core.graph import argument
from qspec_core.patterns import Reason

__all__ = ["constant_bias", "shape_of", "static_shape"]


def shape_of(node: object) -> tuple[int, ...] | None:
    """Shape of a node's value, symbols included; None where the graph does not say."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else None


def constant_bias(node: Node) -> Reason | None:
    """The kernels pack the bias beforehand."""
    value = argument(node, "bias")
    if isinstance(value, Node) and value.op != "get_attr":
        return Reason.unsupported("operand bias is computed, not a constant")
    return None


def static_shape(node: Node) -> Reason | None:
    """The delegate refuses to move data into a shape that is known only when the model runs."""
    shape = shape_of(node)
    if shape is not None and any(not isinstance(size, int) for size in shape):
        return Reason.unsupported(f"the shape {shape} is not known beforehand")
    return None
