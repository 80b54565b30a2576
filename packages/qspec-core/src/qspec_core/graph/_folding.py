"""Constant folding: find the nodes that depend only on constants, compute them, and store the results."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from qspec_core import ops
from qspec_core.graph._arguments import called_operator, written_arguments
from qspec_core.graph._attributes import add_constant, constant_value
from qspec_core.graph._mutation import mutated_attributes
from qspec_core.graph._values import tensor_value

__all__ = ["compute_constants", "constant_fold", "constant_nodes", "erase_unread"]


def constant_nodes(module: GraphModule, *, quantizes: bool = False) -> set[Node]:
    """Nodes that depend only on constants, directly or through other such nodes.

    Left out, with all that depends on them: nodes that are random, mutate something or dequantize.

    Args:
        module: an exported graph module, only read.
        quantizes: include nodes that quantize.
    Cost: O(nodes), plus O(edges) of the nodes found.
    """
    mutated = mutated_attributes(module)
    constants = (node for node in module.graph.find_nodes(op="get_attr") if str(node.target) not in mutated)
    found = {node for node in constants if constant_value(module, node) is not None}
    pending = list(found)
    while pending:
        for reader in pending.pop().users:
            inputs = reader.all_input_nodes
            if reader not in found and all(node in found for node in inputs) and _is_pure(reader, quantizes):
                found.add(reader)
                pending.append(reader)
    return found


def _is_pure(node: Node, quantizes: bool) -> bool:
    if node.op == "call_function" and node.target is operator.getitem:
        return True
    called = called_operator(node)
    if called is None or ops.is_dequantize(node) or (ops.is_quantize(node) and not quantizes):
        return False
    return torch.Tag.nondeterministic_seeded not in called.tags and not written_arguments(called)


def compute_constants(module: GraphModule, nodes: Sequence[Node]) -> dict[Node, Any]:
    """Values of constant nodes and of all nodes that they depend on, in graph order.

    Cost: O(nodes of the graph), plus the arithmetic.
    """
    values: dict[Node, Any] = {}
    for node in _needed(nodes, module):
        values[node] = _value(module, node, values)
    return values


def _needed(nodes: Sequence[Node], module: GraphModule) -> list[Node]:
    """These nodes and all nodes that they depend on, in graph order."""
    found: set[Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += node.all_input_nodes
    return [node for node in module.graph.nodes if node in found]


def _value(module: GraphModule, node: Node, values: dict[Node, Any]) -> Any:  # a tensor, or a tuple of them
    if node.op == "get_attr":
        return constant_value(module, node)
    arguments, keywords = map_arg((node.args, node.kwargs), values.__getitem__)
    with torch.no_grad():
        return node.target(*arguments, **keywords)  # type: ignore[operator]  # only call_function nodes come here


def erase_unread(module: GraphModule, values: Mapping[Node, Any]) -> None:
    """Erase the nodes of `values` that nothing reads; `values` is in graph order."""
    for node in reversed(list(values)):
        if not node.users:
            module.graph.erase_node(node)


def constant_fold(gm: GraphModule, constraint_fn: Callable[[Node], bool] | None = None) -> None:
    """Fold constants, integers included, in place.

    Dequantizes stay, with all that depends on them: a device reads the integers.

    Args:
        gm: a graph module that the caller owns.
        constraint_fn: a node is folded only if this returns True for it; None folds all.
    Cost: O(nodes + edges), plus the arithmetic.
    """
    constant = constant_nodes(gm, quantizes=True)
    wanted = [node for node in gm.graph.nodes if node in constant and node.op == "call_function"]
    values = compute_constants(gm, wanted)
    for node in wanted:
        is_wanted = constraint_fn is None or constraint_fn(node)
        if is_wanted and isinstance(values[node], Tensor) and any(user not in constant for user in node.users):
            folded = add_constant(gm, "_frozen_param", values[node], node, fake=tensor_value(node))
            folded.meta = dict(node.meta)
            node.replace_all_uses_with(folded)
    erase_unread(gm, values)
    gm.recompile()
