"""Record the operators that passes remove from a graph, so that coverage and selectors still find them."""

from typing import Any

from torch.fx import GraphModule, Node

from qspec_core._errors import module_stack
from qspec_core._torch import OpOverload, is_unlifted

__all__ = [
    "FOLDED_KEY",
    "NUMERIC_DEBUG_HANDLE_KEY",
    "REMOVED_KEY",
    "STANDS_FOR_KEY",
    "debug_handle",
    "fold_node",
    "remove_unread",
    "retarget",
    "set_debug_handle",
    "value_source",
]

FOLDED_KEY = "qspec_folded"
"""Key in a module's `meta`: for each operator that a pass removed, by name, a note about how."""
NUMERIC_DEBUG_HANDLE_KEY = "numeric_debug_handle"
"""Key of a node's number in numeric debugging, in its `meta["custom"]`."""
REMOVED_KEY = "qspec_removed"
"""Key in a module's `meta`: operator and module stack of each removed operator, for selectors that name it."""
_SOURCE_KEY = "qspec_value_of"
"""Key in a node's `meta`: the exported operator whose value it has, if that is not the one it was made from."""
_INSERTED = ("prepare_pt2e", "convert_pt2e")
STANDS_FOR_KEY = "qspec_stands_for"
"""Key in a module's `meta`: for each operator that a pass removed, by name, the node that has its value now."""


def debug_handle(node: Node) -> int | None:
    """Number of a node in numeric debugging."""
    handle: int | None = node.meta.get("custom", {}).get(NUMERIC_DEBUG_HANDLE_KEY)
    return handle


def set_debug_handle(node: Node, handle: int) -> None:
    """Number a node. Other entries of its `meta["custom"]` are kept, in a copy: copied graphs share the original."""
    node.meta["custom"] = node.meta.get("custom", {}) | {NUMERIC_DEBUG_HANDLE_KEY: handle}


def value_source(node: Node) -> tuple[str, int] | None:
    """Name and graph of the exported operator whose value a node has; None for a node that export or qspec inserted."""
    noted: tuple[str, int] | None = node.meta.get(_SOURCE_KEY)
    history = node.meta.get("from_node")
    if noted is not None or not history or is_unlifted(history) or history[-1].pass_name in _INSERTED:
        return noted
    source = history[-1]
    while source.from_node:
        source = source.from_node[-1]
    return source.name, source.graph_id


def fold_node(module: GraphModule, old: Node, new: Node, note: str, *, same_value: bool = True) -> None:
    """Replace `old` by `new`, erase it, and record that.

    Args:
        module: owned graph module, whose `meta` is its own too.
        old: node to erase.
        new: node that the readers of `old` read now.
        note: how it was removed, for coverage.
        same_value: whether `new` has the value of `old`.
    """
    old.replace_all_uses_with(new)
    module.meta.setdefault(FOLDED_KEY, {})[old.name] = note
    removed = module.meta.setdefault(REMOVED_KEY, [])
    removed.append((str(old.target), tuple(module_stack(old))))
    if same_value:
        module.meta.setdefault(STANDS_FOR_KEY, {})[old.name] = new.name
        handle, source = debug_handle(old), value_source(old)
        if handle is not None and new.op == "call_function":
            set_debug_handle(new, handle)
        if source is not None and new.op == "call_function":
            new.meta[_SOURCE_KEY] = source
    module.graph.erase_node(old)


def retarget(node: Node, target: OpOverload, *args: Any) -> None:
    """Let a node call another operator that computes the same value.

    It keeps its name and metadata, so that reports, selectors and the user's own notes still find it.
    """
    node.target = target
    node.args = args
    node.kwargs = {}


def remove_unread(module: GraphModule) -> None:
    """Remove nodes that nothing reads, and record that.

    Args:
        module: owned graph module, whose `meta` is its own too.
    Cost: O(nodes + edges).
    """
    notes = module.meta.setdefault(FOLDED_KEY, {})
    for node in reversed(module.graph.nodes):
        if node.users or node.is_impure():
            continue
        if node.op == "call_function":
            notes.setdefault(node.name, "removed: nothing reads its result")
        module.graph.erase_node(node)
