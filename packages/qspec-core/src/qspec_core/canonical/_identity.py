"""Operators that do nothing in evaluation leave the graph."""

import torch
from torch.fx import GraphModule

from qspec_core.canonical._record import fold_node
from qspec_core.patterns import argument, is_call

__all__ = ["remove_identities"]

aten = torch.ops.aten
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)


def remove_identities(module: GraphModule) -> None:
    """Remove dropout traced in evaluation mode.

    Cost: O(nodes).
    """
    for node in list(module.graph.nodes):
        if is_call(node, *_DROPOUTS) and argument(node, "train") is False:
            fold_node(module, node, argument(node, "input"), "identity in evaluation")
