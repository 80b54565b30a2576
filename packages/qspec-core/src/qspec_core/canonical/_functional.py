"""Replace in-place operators by functional ones if no later reader can see the difference."""

from functools import cache

import torch
from torch.fx import GraphModule, Node

from qspec_core._torch import OpOverload, schema_of
from qspec_core.graph import argument_names, called_operator, is_view, tensor_value, written_arguments

__all__ = ["is_private", "make_functional"]


@cache
def _functional_form(target: OpOverload) -> OpOverload | None:
    """`aten.relu.default` for `aten.relu_.default`: the operator of that name that takes the same arguments."""
    schema = schema_of(target)
    namespace, _, name = schema.name.partition("::")
    if not name.endswith("_") or name.endswith("__") or written_arguments(target) != argument_names(target)[:1]:
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    form: object = getattr(packet, schema.overload_name or "default", None)
    if not isinstance(form, OpOverload) or argument_names(form) != argument_names(target) or written_arguments(form):
        return None
    return form


def _read_later(node: Node, position: dict[Node, int], at: int, depth: int = 0) -> bool:
    """Whether `node`, or a view of it, is read after position `at`. Views of views are followed for four steps;
    deeper ones count as read."""
    for user in node.users:
        if position[user] > at:
            return True
        if position[user] < at and is_view(user) and (depth == 4 or _read_later(user, position, at, depth + 1)):
            return True
    return False


def is_private(node: Node, position: dict[Node, int], at: int) -> bool:
    """Whether the storage of `node` was made in this run of the graph and has no reader after position `at`."""
    current = node
    for _ in range(8):  # a longer chain of views is left as it is
        if current.op != "call_function" or _read_later(current, position, at):
            return False
        if not is_view(current):
            return True
        current = current.all_input_nodes[0]
    return False


def _promotes(node: Node, source: Node) -> bool:
    """Whether the functional form could give another dtype: in place, the result has the dtype of `source`."""
    kept = tensor_value(source)
    others = [tensor_value(other) for other in node.all_input_nodes]
    return any(o is not None and o.is_floating_point() and (kept is None or o.dtype != kept.dtype) for o in others)


def make_functional(module: GraphModule) -> None:
    """Replace in-place operators whose input is not read after them, directly or through a view.

    An operator that writes to an input of the graph or to a buffer stays.

    Cost: O(nodes + edges).
    """
    called = ((node, called_operator(node)) for node in module.graph.nodes)
    forms = [(node, form) for node, target in called if target is not None and (form := _functional_form(target))]
    position = {node: index for index, node in enumerate(module.graph.nodes)} if forms else {}
    for node, form in forms:
        source = node.args[0] if node.args else None
        if not isinstance(source, Node) or not is_private(source, position, position[node]):
            continue
        if not _promotes(node, source):
            node.target = form
