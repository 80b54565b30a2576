"""Operators that do nothing in evaluation leave the graph."""

import torch
from torch.fx import GraphModule, Node

from qspec_core.canonical._record import fold_node
from qspec_core.patterns import argument, is_call

__all__ = ["IDENTITY_NOTE", "is_identity", "remove_identities"]

IDENTITY_NOTE = "identity in evaluation"
"""What coverage says of an operator that does nothing in evaluation."""

aten = torch.ops.aten
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)


def is_identity(node: Node) -> bool:
    """Whether a node is dropout traced in evaluation mode."""
    return is_call(node, *_DROPOUTS) and argument(node, "train") is False


def remove_identities(module: GraphModule) -> None:
    """Remove dropout traced in evaluation mode.

    Cost: O(nodes).
    """
    for node in list(module.graph.nodes):
        if is_identity(node):
            fold_node(module, node, argument(node, "input"), IDENTITY_NOTE)
