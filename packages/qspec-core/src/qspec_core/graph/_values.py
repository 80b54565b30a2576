"""What a node computes, read from the fake tensor in its metadata and from its operator's schema."""

import operator

from torch import Tensor
from torch.fx import Node

from qspec_core._torch import schema_of
from qspec_core.graph._arguments import called_operator

__all__ = ["computes_float", "is_float", "is_view"]


def is_float(node: object) -> bool:
    """Whether a node's value is one floating-point tensor, by the fake tensor in its metadata."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()


def is_view(node: object) -> bool:
    """Whether a node's value may share storage with its first input: by the operator's schema, or as an item of a list
    of such values."""
    while isinstance(node, Node) and node.op == "call_function" and node.target is operator.getitem:
        node = node.args[0]
    called = called_operator(node)
    return called is not None and any(value.alias_info is not None for value in schema_of(called).returns)


def computes_float(node: Node) -> bool:
    """Whether a node's value is a floating-point tensor, or a tuple whose first item is one."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, tuple | list) and value else value
    return isinstance(first, Tensor) and first.is_floating_point()
