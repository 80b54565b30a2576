"""Fold weights and biases that a model computes from its parameters only: a weight norm, a standardized kernel, a slice
of a fused projection."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core.canonical._linear import MATRIX_VIEWS
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
"""Operands of products that may be weights, by operator."""


def fold_weights(module: GraphModule) -> None:
    """Fold each weight and bias of a layer, and each matrix of a product, that is computed from constants only.

    A view of a constant stays as it is. Operators that are random, mutate something or dequantize stay in the graph,
    with all that depends on them.

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
            fold_node(module, node, folded, "folded: it depends only on constants")
    for node in reversed(values):
        if node not in wanted and not node.users and node.op == "call_function":
            fold_node(module, node, node.all_input_nodes[0], "folded: it depends only on constants")


def _weights(node: Node) -> tuple[object, ...]:
    """Operands that a device holds as weights or biases."""
    if is_call(node, *LAYERS):
        return argument(node, "weight"), argument(node, "bias")
    return tuple(_computed(argument(node, name)) for name in _MATRICES[node.target])


def _computed(matrix: object) -> object:
    """The node that computes a matrix, before the views that its product takes."""
    while is_call(matrix, *MATRIX_VIEWS):
        matrix = argument(matrix, "self")
    return matrix
