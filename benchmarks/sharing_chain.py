"""A chain of nodes whose points all share, to time the sharing solver."""

import torch
from torch.fx import Graph, Node

from qspec_core import (
    Q_ANNOTATION_KEY,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from qspec_core.observers import MinMaxObserver

__all__ = ["chain"]


def chain(length: int) -> Graph:
    """A graph of `length` nodes in a row; each edge shares with the output before it, each output with its edge."""
    spec = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
    graph = Graph()
    node: Node = graph.placeholder("x")
    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=spec)
    for _ in range(length):
        after = graph.call_function(torch.ops.aten.relu.default, (node,))
        edge = (node, after)
        shares: dict[Node, QuantizationSpecBase | None] = {node: SharedQuantizationSpec(node)}
        after.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(shares, SharedQuantizationSpec(edge))
        node = after
    graph.output(node)
    return graph
