"""Weights and biases that a model computes from its parameters alone become constants: a weight norm, a standardized
kernel, a slice of a fused projection."""

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from qspec_core import ops
from qspec_core.canonical._linear import MOVES
from qspec_core.canonical._record import fold_node
from qspec_core.graphs import add_constant, constant_value, mutated_attributes
from qspec_core.layers import LAYERS
from qspec_core.patterns import argument, called_operator, is_call, written_arguments

__all__ = ["fold_weights"]

_aten = torch.ops.aten
_MATRICES: dict[Any, tuple[str, ...]] = {  # an operator overload, as node targets are
    _aten.addmm.default: ("self", "mat2"),
    _aten.mm.default: ("self", "mat2"),
    _aten.bmm.default: ("mat2",),
    _aten.matmul.default: ("self", "other"),
}
"""Operands of products that may be weights."""


def fold_weights(module: GraphModule) -> None:
    """Compute ahead each weight and bias of a convolution or linear layer, and each matrix of a product, that follows
    from constants alone. A constant that is only laid out anew is no computation.

    What is random, mutates something or dequantizes stays in the graph, with all that depends on it.

    Args:
        module: an exported graph module that the caller owns.
    Cost: O(nodes + edges), plus the arithmetic on the weights.
    """
    wanted = dict.fromkeys(
        node
        for layer in module.graph.nodes
        for node in _weights(layer)
        if isinstance(node, Node) and node.op == "call_function"
    )
    if not wanted:
        return
    constant = _constants(module)
    values: dict[Node, Any] = {}
    for node in _needed([node for node in wanted if node in constant], module):
        values[node] = _value(module, node, values)
    for node in wanted:
        value = values.get(node)
        if isinstance(value, Tensor):
            held = nn.Parameter(value, requires_grad=False)
            fake = node.meta.get("val")
            folded = add_constant(
                module, "_folded_weight_", held, node, fake=fake if isinstance(fake, Tensor) else None
            )
            fold_node(module, node, folded, "computed ahead: it follows from constants alone")
    for node in reversed(values):
        if node not in wanted and not node.users and node.op == "call_function":
            fold_node(module, node, node.all_input_nodes[0], "computed ahead: it follows from constants alone")


def _weights(node: Node) -> tuple[object, ...]:
    """Operands that a device holds as weights or biases."""
    if is_call(node, *LAYERS):
        return argument(node, "weight"), argument(node, "bias")
    return (
        tuple(_computed(argument(node, name)) for name in _MATRICES[node.target]) if is_call(node, *_MATRICES) else ()
    )


def _computed(matrix: object) -> object:
    """What a matrix is computed by, before it is laid out for its product."""
    while is_call(matrix, *MOVES):
        matrix = argument(matrix, "self")
    return matrix


def _constants(module: GraphModule) -> set[Node]:
    """Nodes whose value is the same in every call and that do nothing else."""
    mutated = mutated_attributes(module)
    found: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            is_constant = str(node.target) not in mutated and constant_value(module, node) is not None
        else:
            inputs = node.all_input_nodes
            is_constant = _is_pure(node) and bool(inputs) and all(source in found for source in inputs)
        if is_constant:
            found.add(node)
    return found


def _is_pure(node: Node) -> bool:
    if node.op == "call_function" and node.target is operator.getitem:
        return True
    called = called_operator(node)
    if called is None or ops.is_dequantize(node) or ops.is_quantize(node):
        return False
    return torch.Tag.nondeterministic_seeded not in called.tags and not written_arguments(called)


def _needed(nodes: list[Node], module: GraphModule) -> list[Node]:
    """These nodes and all that they follow from, in graph order."""
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
