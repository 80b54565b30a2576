"""Convert observers of other stacks that write their own form, by a method `convert(model, observer_node)`."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core.graph import add_constant, constant_value, copy_graph_module, graph_modules, observer_nodes

__all__ = ["convert_custom_observers"]

_KEPT = ("val", "nn_module_stack", "stack_trace", "torch_fn")


def convert_custom_observers(model: GraphModule, *, fold_quantize: bool) -> GraphModule:
    """Convert the observers that have a method `convert`, on a copy.

    The method replaces the observer's node by operators. Those that turn constants into integers are computed at once,
    and their results are stored.

    Args:
        model: a prepared and calibrated module; not changed.
        fold_quantize: store constants as integers; False leaves the operators that quantize them in the graph.
    Returns: the copy; the module itself if no observer converts itself.
    Cost: O(nodes + edges), plus the observers' own work.
    """
    if not any(_custom_observers(body) for _, body in graph_modules(model)):
        return model
    copied = copy_graph_module(model)
    for _, body in graph_modules(copied):
        for node, observer in _custom_observers(body):
            _convert_observer(body, node, observer, fold_quantize)
    return copied


def _custom_observers(body: GraphModule) -> list[tuple[Node, nn.Module]]:
    return [(node, observer) for node, observer in observer_nodes(body) if _converts_itself(observer)]


def _convert_observer(body: GraphModule, node: Node, observer: nn.Module, fold_quantize: bool) -> None:
    kept, readers = {key: node.meta[key] for key in _KEPT if key in node.meta}, list(node.users)
    before, after = node.prev, node.next
    convert = observer.convert
    convert(body, node)  # type: ignore[operator]  # _converts_itself held
    new = list(_between(before, after))
    for other in new:
        if any(reader in other.users for reader in readers):
            other.meta = {**kept, **other.meta}
    if fold_quantize:
        _freeze(body, new)


def _between(before: Node, after: Node) -> Iterator[Node]:
    """The nodes between an observer's former neighbours: the operators that it wrote in its place."""
    node = before.next
    while node is not after:
        yield node
        node = node.next


def _converts_itself(observer: object) -> bool:
    return callable(getattr(observer, "convert", None)) and not hasattr(observer, "converted_form")


def _freeze(module: GraphModule, new: list[Node]) -> None:
    """Fold new nodes that depend only on constants and give integers; store the integers."""
    values: dict[Node, Tensor] = {}
    frozen: set[Node] = set()
    for node in new:
        sources = node.all_input_nodes
        for source in sources:
            value = constant_value(module, source)
            if value is not None and source not in frozen:
                values[source] = value.detach()
        if node.op != "call_function" or not sources or not all(source in values for source in sources):
            continue
        with torch.no_grad():
            result = node.target(  # type: ignore[operator]  # the target of a call_function is callable
                *torch.fx.map_arg(node.args, values.__getitem__), **torch.fx.map_arg(node.kwargs, values.__getitem__)
            )
        if not isinstance(result, Tensor):
            continue
        if result.is_floating_point():
            values[node] = result
        else:
            integers = add_constant(module, "_frozen_param", result, before=node)
            frozen.add(integers)
            node.replace_all_uses_with(integers)
            module.graph.erase_node(node)
    for node in reversed(new):
        if node in values and node.op == "call_function" and not node.users:
            module.graph.erase_node(node)
