"""Queries of the value that a node computes: its fake tensor in `meta["val"]`, its dtype, whether it is a view."""

import operator

from torch import Tensor
from torch.fx import Node

from qspec_core._errors import GraphError
from qspec_core._torch import schema_of
from qspec_core.graph._arguments import called_operator

__all__ = ["computes_float", "is_float", "is_view", "require_tensor_value", "tensor_value"]


def tensor_value(node: object) -> Tensor | None:
    """The fake tensor that a node computes, from its metadata.

    None for anything else: a node that computes a tuple or a number, a node without metadata, an argument that is no
    node.
    """
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def require_tensor_value(node: object) -> Tensor:
    """The fake tensor that a node computes, where a pass cannot go on without its shape or dtype.

    Raises: GraphError: the node has none in its metadata.
    """
    value = tensor_value(node)
    if value is None:
        raise GraphError(
            "the shape of a tensor is not known",
            where=node if isinstance(node, Node) else None,
            found=f"no fake tensor in the metadata of {node}",
            expected="a fake tensor in node.meta['val']",
            remedy="export the model again; a pass that ran on it dropped node.meta['val']",
        )
    return value


def is_float(node: object) -> bool:
    """Whether a node's value is one floating-point tensor, by the fake tensor in its metadata."""
    value = tensor_value(node)
    return value is not None and value.is_floating_point()


def is_view(node: object) -> bool:
    """Whether a node's value may share storage with its first input, by the operator's schema.

    An item of a list of views is a view too.
    """
    while isinstance(node, Node) and node.op == "call_function" and node.target is operator.getitem:
        node = node.args[0]
    called = called_operator(node)
    return called is not None and any(value.alias_info is not None for value in schema_of(called).returns)


def computes_float(node: Node) -> bool:
    """Whether a node's value is a floating-point tensor, or a tuple whose first item is one."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, tuple | list) and value else value
    return isinstance(first, Tensor) and first.is_floating_point()
