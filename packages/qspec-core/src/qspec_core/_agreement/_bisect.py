"""The first operator at which a lowered program leaves its converted graph, by bisection."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core import ops
from qspec_core._agreement._calls import calls_of
from qspec_core._agreement._check import check_lowered
from qspec_core._torch import return_one_value
from qspec_core.graph import computes_float, copy_graph_module, gc_paused, is_call, wrap_graph
from qspec_core.graph._mutation import mutated_attributes

__all__ = ["first_divergence"]

Lower = Callable[[GraphModule], nn.Module]
_SKIPPED = 8
"""Pieces that do not lower, after the last one that agrees, before the first of them is named."""


def first_divergence(converted: GraphModule, example_inputs: tuple[Any, ...], lower: Lower) -> str | None:
    """Name of the first node whose value diverges; None for a graph without an operator that computes floats.

    The graph is cut after a node, so that the node's value is its result, lowered again, and compared. A piece may
    fail to lower where the whole does not: then a later node is tried.

    Args:
        converted: the graph that a lowered program diverges from; not changed.
        example_inputs: positional arguments of one call.
        lower: lowers a graph.
    Cost: a lowering and a check for each of log2(nodes) cuts.
    """
    names = [str(node.name) for node in converted.graph.nodes if _is_candidate(node)]
    low, last = 0, len(names) - 1  # the whole graph diverges: where nothing before does, the last operator does
    high = last
    while low < high:
        middle = (low + high) // 2
        if _agrees(converted, names[middle], example_inputs, lower):
            low = middle + 1
        else:
            high = middle
    for at in range(low, min(low + _SKIPPED, last)):
        if _agrees(converted, names[at], example_inputs, lower) is False:
            return names[at]
    return names[min(low, last)] if names else None


def _is_candidate(node: Node) -> bool:
    """Whether a node is an operator of the model that computes floats."""
    if not is_call(node) or ops.is_quantize(node) or ops.is_dequantize(node) or not computes_float(node):
        return False
    return isinstance(node.meta.get("val"), Tensor)


def _agrees(converted: GraphModule, name: str, example_inputs: tuple[Any, ...], lower: Lower) -> bool | None:
    """Whether the graph cut after a node agrees; None where the piece does not lower or run."""
    try:
        cut = _cut(converted, name)
        calls = calls_of(cut, example_inputs)
        return check_lowered(lower(cut), calls, keeps_state=bool(mutated_attributes(cut))).holds
    except Exception:  # whatever export, a compiler or a runtime raise for a piece of a graph
        return None


def _cut(converted: GraphModule, name: str) -> GraphModule:
    """A copy of the graph that ends after a node and returns its value: quantized and dequantized, if the graph does so
    for some reader, since a kernel may write integers alone."""
    with gc_paused():
        copied = copy_graph_module(converted)
        (node,) = (node for node in copied.graph.nodes if node.name == name)
        integers = next((user for user in node.users if is_call(user, ops.QUANTIZE)), None)
        (output,) = copied.graph.find_nodes(op="output")
        value = next(iter(integers.users)) if integers is not None else node
        output.args = ((value,),)  # the calling convention of exported graphs: a flat list of results
        return_one_value(copied.graph)
        copied.graph.eliminate_dead_code()
        return wrap_graph(copied, copied.graph)
