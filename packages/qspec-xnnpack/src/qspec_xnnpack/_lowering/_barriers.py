"""Copies before dynamic convolutions, and views around dynamic linear layers, which keep the orders of images apart."""

import torch
from torch.fx import GraphModule, Node

from qspec_core.graph import argument, tensor_value
from qspec_core.lowering import Quantized, quantized_value
from qspec_core.patterns import Match, Role
from qspec_xnnpack._lowering._partitioner import OUTSIDE_KEY

__all__ = ["copy_inputs_of_dynamic_convolutions", "flatten_dynamic_linears"]

aten = torch.ops.aten
_IMAGE_RANK = 4
# The delegate writes the results of these in channels-last order.
_CHANNELS_LAST = {
    aten.conv2d.default,
    aten.conv_transpose2d.input,
    aten.max_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.mean.dim,
}
# These keep the order of their inputs.
_KEEPING = {aten.relu.default, aten.hardtanh.default, aten.clamp.default, aten.sigmoid.default, aten.hardswish.default}
_KEEPING |= {aten.add.Tensor, aten.mul.Tensor}


def copy_inputs_of_dynamic_convolutions(module: GraphModule, matches: list[Match]) -> None:
    """Copy the input of a dynamic convolution, outside the delegate, unless it is in channels-last order already.

    To reorder that input, the delegate goes back to the first tensor that it was computed from, reorders that, and
    leaves the marks on everything between as they were: other readers get permuted values, or the program fails
    (ExecuTorch 1.5.1). With a copy, the tensor that it goes back to is the copy.

    Args:
        module: a converted graph module in canonical form that the caller owns.
        matches: its rows.
    Cost: O(nodes + edges); one copy of the input for each such convolution when the program runs.
    """
    ordered = _in_channels_last_order(module)
    copies: dict[Node, Node] = {}
    for match in matches:
        if match.anchor.target not in _CHANNELS_LAST:
            continue
        for _, node in match.inputs(Role.ACTIVATION):
            found = quantized_value(node)
            quantize = quantized_value(found.integers) if found is not None and found.is_dynamic else None
            if quantize is not None and argument(quantize.node, "input") not in ordered:
                _copy(module, quantize, copies)


def flatten_dynamic_linears(module: GraphModule, matches: list[Match]) -> None:
    """Let dynamic linear layers of four dimensions compute in three, between views.

    An image in channels-last order may not be read by a dynamic linear layer: ExecuTorch reorders it between the
    layer and its quantize, and then does not find the quantize (1.5.1). A view is reordered before it.

    Args:
        module: a converted graph module in canonical form that the caller owns.
        matches: its rows.
    Cost: O(matches).
    """
    for match in matches:
        if match.anchor.target is not aten.linear.default:
            continue
        for _, node in match.inputs(Role.ACTIVATION):
            found, value = quantized_value(node), tensor_value(node)
            quantize = quantized_value(found.integers) if found is not None and found.is_dynamic else None
            if found is None or quantize is None or value is None or value.dim() != _IMAGE_RANK:
                continue
            if all(isinstance(size, int) for size in value.shape):
                _flatten(module, match, found, quantize)


def _flatten(module: GraphModule, match: Match, found: Quantized, quantize: Quantized) -> None:
    graph, source, tail = module.graph, argument(quantize.node, "input"), match.tail
    # (n, c, h, w) -> (n * c, h, w)
    with graph.inserting_after(source):
        flat = graph.call_function(aten.view.default, (source, list(source.meta["val"].flatten(0, 1).shape)))
    flat.meta = {**source.meta, "val": source.meta["val"].flatten(0, 1)}
    # The layer gets a quantize of its own: others may read the first one.
    with graph.inserting_before(found.node):
        chain: dict[Node, Node] = {source: flat}
        for node in (*_parameters_of(quantize), quantize.node, found.node):
            chain[node] = graph.node_copy(node, lambda old: chain.get(old, old))
    match.anchor.replace_input_with(found.node, chain[found.node])
    whole = tail.meta["val"]
    for node in (chain[quantize.node], chain[found.node], *match.nodes):
        node.meta = {**node.meta, "val": node.meta["val"].flatten(0, 1)}
    with graph.inserting_after(tail):
        back = graph.call_function(aten.view.default, (tail, list(whole.shape)))
    back.meta = {**tail.meta, "val": whole}
    tail.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)


def _parameters_of(quantize: Quantized) -> list[Node]:
    """The operator that finds scale and zero point, and the nodes that take them from its result."""
    items = [item for item in (quantize.scale, quantize.zero_point) if isinstance(item, Node)]
    choosers = dict.fromkeys(source for item in items for source in item.all_input_nodes)
    return [*choosers, *items]


def _in_channels_last_order(module: GraphModule) -> set[Node]:
    ordered: set[Node] = set()
    for node in module.graph.nodes:
        value = tensor_value(node)
        if value is None or value.dim() != _IMAGE_RANK or node.op != "call_function":
            continue
        tensors = [source for source in node.all_input_nodes if tensor_value(source) is not None]
        keeps = node.target in _KEEPING and bool(tensors) and all(source in ordered for source in tensors)
        if keeps or node.target in _CHANNELS_LAST:
            ordered.add(node)
    return ordered


def _copy(module: GraphModule, quantize: Quantized, copies: dict[Node, Node]) -> None:
    """Let a dynamic quantize, and the operator that finds its parameters, read a copy of the tensor."""
    source: Node = argument(quantize.node, "input")
    readers = [quantize.node]
    if isinstance(quantize.scale, Node):
        readers += [found for found in quantize.scale.all_input_nodes if source in found.all_input_nodes]
    others = [user for user in source.users if user not in readers and user.op == "call_function"]
    if source.op == "placeholder" and not others:
        return  # the delegate goes back to the program's input, which nothing else reads
    if source not in copies:
        with module.graph.inserting_after(source):
            copies[source] = module.graph.call_function(aten.clone.default, (source,))
        copies[source].meta = {**source.meta, "custom": {**(source.meta.get("custom") or {}), OUTSIDE_KEY: True}}
    for reader in readers:
        reader.replace_input_with(source, copies[source])
