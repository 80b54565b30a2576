"""What the passes took out of a graph, kept for coverage: an operator that vanished is not an operator forgotten."""

from typing import Any

from torch.fx import GraphModule, Node

from qspec_core._torch import OpOverload
from qspec_core.errors import module_stack

__all__ = ["FOLDED_KEY", "REMOVED_KEY", "STANDS_FOR_KEY", "fold_node", "retarget"]

FOLDED_KEY = "qspec_folded"
"""Key in a module's `meta`: name of each operator that a pass removed, to what became of it."""
REMOVED_KEY = "qspec_removed"
"""Key in a module's `meta`: operator and module stack of what the passes removed, for selectors that name it."""
STANDS_FOR_KEY = "qspec_stands_for"
"""Key in a module's `meta`: name of each operator that a pass removed, to the node that has its value now."""


def fold_node(module: GraphModule, old: Node, new: Node, note: str, *, same_value: bool = True) -> None:
    """Let the readers of `old` read `new`, erase `old`, and record what became of it.

    Args:
        module: owned graph module, whose `meta` is its own too.
        old: node to erase.
        new: node that its readers read now.
        note: what became of `old`.
        same_value: `new` has the value that `old` had.
    """
    old.replace_all_uses_with(new)
    module.meta.setdefault(FOLDED_KEY, {})[old.name] = note
    removed = module.meta.setdefault(REMOVED_KEY, [])
    removed.append((str(old.target), tuple(module_stack(old))))
    if same_value:
        module.meta.setdefault(STANDS_FOR_KEY, {})[old.name] = new.name
    module.graph.erase_node(old)


def retarget(node: Node, target: OpOverload, *args: Any) -> None:
    """Let a node call another operator with the same value. It keeps its name and metadata, so that reports, selectors
    and the user's own notes still find it."""
    node.target = target
    node.args = args
    node.kwargs = {}
