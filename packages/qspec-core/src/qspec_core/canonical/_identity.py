"""Remove operators that do nothing in evaluation."""

import torch
from torch.fx import GraphModule, Node

from qspec_core.canonical._record import fold_node
from qspec_core.graph import argument, argument_names, called_operator, calls, is_call, tensor_value

__all__ = ["IDENTITY_NOTE", "is_identity", "remove_identities"]

IDENTITY_NOTE = "identity in evaluation"
"""The text in coverage for an operator that does nothing in evaluation."""

aten = torch.ops.aten
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
_CASTS = (aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.type_as.default)


def is_identity(node: Node) -> bool:
    """Whether a node is dropout traced in evaluation mode, or a cast that changes neither dtype, device nor layout."""
    if is_call(node, *_DROPOUTS):
        return argument(node, "train") is False
    return is_call(node, *_CASTS) and _returns_its_input(node)


def _returns_its_input(cast: Node) -> bool:
    """Whether a cast returns its input: no copy or memory format is requested, and dtype, device and layout agree."""
    value, source = tensor_value(cast), tensor_value(argument(cast, "self"))
    if value is None or source is None:
        return False
    operator = called_operator(cast)
    names = argument_names(operator) if operator is not None else ()
    asked = [argument(cast, name) for name in ("copy", "memory_format") if name in names]
    return not any(asked) and (value.dtype, value.device, value.layout) == (source.dtype, source.device, source.layout)


def remove_identities(module: GraphModule) -> None:
    """Remove dropout traced in evaluation mode, and casts that change nothing.

    Cost: O(dropouts + casts).
    """
    for node in calls(module.graph, *_DROPOUTS, *_CASTS):
        if is_identity(node):
            fold_node(module, node, node.all_input_nodes[0], IDENTITY_NOTE)
