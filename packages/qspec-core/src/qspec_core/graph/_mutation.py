"""Inputs and buffers that a graph writes to."""

from typing import Any

from torch.fx import GraphModule, Node

from qspec_core.graph._arguments import argument, called_operator, written_arguments
from qspec_core.graph._bodies import control_calls
from qspec_core.graph._values import is_view

__all__ = ["STATE_KEY", "mutated_attributes", "written_roots"]

STATE_KEY = "qspec_state"
"""Key of the metadata of a prepared graph: the values, before calibration, of the buffers that it mutates."""


def written_roots(module: GraphModule) -> set[Node]:
    """The inputs and constants that an operator of a graph, or of a body in it, writes to, directly or through a view.

    Cost: O(nodes + edges), bodies included.
    """
    roots: set[Node] = set()
    for node in module.graph.nodes:
        called = called_operator(node)
        for name in written_arguments(called) if called is not None else ():
            roots.update(_root(argument(node, name)))
    for call in control_calls(module):
        for body in call.bodies:
            inside = written_roots(body)
            for operand, place in zip(call.operands, body.graph.find_nodes(op="placeholder"), strict=False):
                if place in inside:
                    roots.update(_root(operand))
    return roots


def _root(value: Any) -> tuple[Node, ...]:  # an operand: a node if it is a tensor
    while is_view(value):
        value = value.all_input_nodes[0]
    return (value,) if isinstance(value, Node) else ()


def mutated_attributes(module: GraphModule) -> set[str]:
    """Targets of the buffers that the graph, or a body in it, writes to."""
    return {str(root.target) for root in written_roots(module) if root.op == "get_attr"}
