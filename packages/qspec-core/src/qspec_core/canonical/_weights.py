"""Weights and biases that a model computes from its parameters alone become constants: a weight norm, a standardized
kernel, a slice of a fused projection."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core.canonical._linear import MOVES
from qspec_core.canonical._record import fold_node
from qspec_core.graph import add_constant, argument, calls, is_call, tensor_value
from qspec_core.graph._folding import compute_constants, constant_nodes
from qspec_core.graph._layers import LAYERS

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
        for layer in calls(module.graph, *LAYERS, *_MATRICES)
        for node in _weights(layer)
        if isinstance(node, Node) and node.op == "call_function"
    )
    if not wanted:
        return
    constant = constant_nodes(module)
    values = compute_constants(module, [node for node in wanted if node in constant])
    for node in wanted:
        value = values.get(node)
        if isinstance(value, Tensor):
            held = nn.Parameter(value, requires_grad=False)
            folded = add_constant(module, "_folded_weight_", held, node, fake=tensor_value(node))
            fold_node(module, node, folded, "computed ahead: it follows from constants alone")
    for node in reversed(values):
        if node not in wanted and not node.users and node.op == "call_function":
            fold_node(module, node, node.all_input_nodes[0], "computed ahead: it follows from constants alone")


def _weights(node: Node) -> tuple[object, ...]:
    """Operands that a device holds as weights or biases."""
    if is_call(node, *LAYERS):
        return argument(node, "weight"), argument(node, "bias")
    return tuple(_computed(argument(node, name)) for name in _MATRICES[node.target])


def _computed(matrix: object) -> object:
    """What a matrix is computed by, before it is laid out for its product."""
    while is_call(matrix, *MOVES):
        matrix = argument(matrix, "self")
    return matrix
