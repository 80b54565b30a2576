"""Weights and biases that a model computes from its parameters alone become constants: a weight norm, a standardized
kernel, a slice of a fused projection."""

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core.canonical._record import fold_node
from qspec_core.folding import compute_constants, constant_nodes
from qspec_core.graphs import add_constant
from qspec_core.layers import LAYERS
from qspec_core.patterns import argument, is_call

__all__ = ["fold_weights"]


def fold_weights(module: GraphModule) -> None:
    """Compute ahead each weight and bias of a convolution or linear layer that follows from constants alone.

    What is random, mutates something or dequantizes stays in the graph, with all that depends on it.

    Args:
        module: an exported graph module that the caller owns.
    Cost: O(nodes + edges), plus the arithmetic on the weights.
    """
    wanted = dict.fromkeys(
        node
        for layer in module.graph.nodes
        if is_call(layer, *LAYERS)
        for node in (argument(layer, "weight"), argument(layer, "bias"))
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
            fake = node.meta.get("val")
            folded = add_constant(
                module, "_folded_weight_", held, node, fake=fake if isinstance(fake, Tensor) else None
            )
            fold_node(module, node, folded, "computed ahead: it follows from constants alone")
    for node in reversed(values):
        if node not in wanted and not node.users and node.op == "call_function":
            fold_node(module, node, node.all_input_nodes[0], "computed ahead: it follows from constants alone")
