"""Fold observed expressions of constants, so that their results are stored as integers."""

from torch.fx import GraphModule, Node

from qspec_core.graph import (
    add_constant,
    copy_graph_module,
    derived_meta,
    graph_modules,
    observer_nodes,
    port_meta,
    tensor_value,
)
from qspec_core.graph._folding import compute_constants, constant_nodes, erase_unread

__all__ = ["fold_observed_expressions"]


def fold_observed_expressions(model: GraphModule) -> GraphModule:
    """Replace each observed expression of constants by its value, as one constant.

    Args:
        model: a prepared module; not changed.
    Returns: a copy; the module itself if no observer observes such an expression.
    Cost: O(nodes + edges), plus the arithmetic.
    """
    if not any(_observed_expressions(body) for _, body in graph_modules(model)):
        return model
    copied = copy_graph_module(model)
    for _, body in graph_modules(copied):
        observed = _observed_expressions(body)
        sources = dict.fromkeys(observer.all_input_nodes[0] for observer in observed)
        values = compute_constants(body, list(sources))
        for source in sources:
            folded = add_constant(body, "_folded_constant_", values[source], source, fake=tensor_value(source))
            folded.meta = derived_meta(source, "convert_pt2e")
            port_meta(source, folded)
            for observer in observed:
                observer.replace_input_with(source, folded)
        erase_unread(body, values)
    return copied


def _observed_expressions(body: GraphModule) -> list[Node]:
    """Observers of expressions that depend only on constants."""
    observers = [node for node, _ in observer_nodes(body) if node.all_input_nodes[0].op == "call_function"]
    constant = constant_nodes(body) if observers else set()
    return [node for node in observers if node.all_input_nodes[0] in constant]
