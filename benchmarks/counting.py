"""Number of quantized layers of a converted graph, read from its structure alone: one count for every library."""

from torch.fx import GraphModule, Node

__all__ = ["count_layers"]

LAYERS = ("aten.conv", "aten.linear", "aten.addmm")
PASSING = ("aten.pad", "aten.constant_pad_nd", "aten.view", "aten.reshape", "aten.flatten", "aten.permute", "aten.t.")


def count_layers(converted: GraphModule) -> tuple[int, int]:
    """Count convolutions and linear layers: those with dequantized input and weight, padded or reshaped or not; all."""
    layers = [node for node in converted.graph.nodes if _is_call(node, LAYERS)]
    quantized = [node for node in layers if all(map(_is_dequantized, node.args[:2]))]
    return len(quantized), len(layers)


def _is_dequantized(value: object) -> bool:
    while isinstance(value, Node) and _is_call(value, PASSING):
        value = value.args[0]
    return isinstance(value, Node) and value.op == "call_function" and ".dequantize" in str(value.target)


def _is_call(node: Node, operators: tuple[str, ...]) -> bool:
    return node.op == "call_function" and str(node.target).startswith(operators)
