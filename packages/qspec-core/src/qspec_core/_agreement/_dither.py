"""The converted graph with dithered rounding: how far its results move when activations round another way.

A kernel may round a value near the middle of two steps to the other one. Where a quantize rounds `x / scale`, the
dithered graph rounds `x / scale + u` with `u` uniform in -0.5..0.5. This is stochastic rounding. It moves the results
about as far as quantization itself does, and much further than a right kernel does.
"""

import torch
from torch.fx import Graph, GraphModule, Node

from qspec_core import ops
from qspec_core.graph import argument, copy_graph_module, gc_paused, graph_modules, is_call

__all__ = ["dithered"]

aten = torch.ops.aten


def dithered(converted: GraphModule) -> GraphModule:
    """Copy a converted graph and add noise of up to half a step before each quantize of an activation.

    Args:
        converted: a graph from `convert_pt2e`; not changed. Buffers that it mutates are cloned.
    Returns: the copy, whose noise comes from torch's global generator.
    Cost: O(nodes + edges).
    """
    with gc_paused():
        copied = copy_graph_module(converted)
        for _, body in graph_modules(copied):
            for node in list(body.graph.nodes):
                if ops.is_quantize(node) and not is_call(node, ops.QUANTIZE_PER_CHANNEL, ops.QUANTIZE_PER_GROUP):
                    _add_noise(body.graph, node)
            body.recompile()
    return copied


def _add_noise(graph: Graph, quantize: Node) -> None:
    source = argument(quantize, "input")
    if not isinstance(source, Node) or source.op == "get_attr":
        return
    # By token, scales (..., 1) broadcast against the input (..., features).
    scale = argument(quantize, "scales" if is_call(quantize, ops.QUANTIZE_PER_TOKEN) else "scale")
    with graph.inserting_before(quantize):
        uniform = graph.call_function(aten.rand_like.default, (source,))
        centred = graph.call_function(aten.sub.Tensor, (uniform, 0.5))
        noise = graph.call_function(aten.mul.Tensor, (centred, scale))
        typed = graph.call_function(aten.type_as.default, (noise, source))
        moved = graph.call_function(aten.add.Tensor, (source, typed))
    quantize.replace_input_with(source, moved)
