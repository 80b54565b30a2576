"""Copies of graph modules that share parameters."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from qspec_core._spec import Q_ANNOTATION_KEY, EdgeOrNode
from qspec_core._torch import copy_persistence, forbid_mode_switch, forbid_pickling, move_codegen, uncompiled
from qspec_core.graph._bodies import attribute, bodies, set_attribute
from qspec_core.graph._mutation import mutated_attributes

__all__ = ["copy_graph_module", "gc_paused", "wrap_graph"]


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the cyclic collector while many graph nodes are made: its passes over them dominate a large edit."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def wrap_graph(
    source: GraphModule, graph: Graph, attributes: dict[str, object] | None = None, *, compiled: bool = True
) -> GraphModule:
    """Wrap a graph into a module.

    Args:
        source: module whose metadata the new one gets, and whose attributes its nodes name, by reference.
        graph: a graph that nothing else owns.
        attributes: the attributes that its nodes name, by target, in place of those of `source`.
        compiled: False generates its code when something reads it: a call, an export, `code`.
    Returns: a module with a copy of `source`'s metadata, whose `.train()` and `.eval()` raise.
    """
    make = GraphModule if compiled else uncompiled
    module = make(source if attributes is None else attributes, graph, type(source).__name__)
    for name, owner in source.named_modules():
        copied = attribute(module, name) if name else module
        if isinstance(copied, nn.Module) and copied is not owner:
            copy_persistence(owner, copied)
    module.meta = {key: dict(value) if isinstance(value, dict) else value for key, value in source.meta.items()}
    forbid_mode_switch(module)
    forbid_pickling(module)
    return module


def copy_graph_module(module: GraphModule) -> GraphModule:
    """Copy a graph and the bodies in it; share parameters and buffers, but clone the buffers that the graph mutates.

    Annotations are rewritten to name the nodes of the copy. The original is not touched.

    Args:
        module: an exported graph module.
    Returns: a module that the caller owns. Its code is generated when something reads it, or by `recompile()`.
    Cost: O(nodes + edges); no parameter is copied.
    """
    graph = Graph()
    nodes: dict[Node, Node] = {}
    output = graph.graph_copy(module.graph, nodes)
    graph.output(output)
    move_codegen(module.graph, graph)
    old_output, new_output = next(iter(reversed(module.graph.nodes))), next(iter(reversed(graph.nodes)))
    nodes[old_output] = new_output
    new_output.meta = dict(old_output.meta)
    for new in nodes.values():
        new.meta = dict(new.meta)
        if new.meta.get(Q_ANNOTATION_KEY) is not None:
            new.meta[Q_ANNOTATION_KEY] = _moved_annotation(new.meta[Q_ANNOTATION_KEY], nodes)
    copied = wrap_graph(module, graph, compiled=False)
    for target, body in bodies(copied).items():
        set_attribute(copied, target, copy_graph_module(body))
    for target in mutated_attributes(copied):
        _clone_buffer(copied, target)
    return copied


def _moved_annotation(annotation: Any, nodes: Mapping[Node, Node]) -> Any:  # a vendor's class may be its own
    """The same annotation on the copied nodes. Its own class is kept, since quantizers of other stacks have theirs."""
    moved = object.__new__(type(annotation))
    moved.__dict__.update(annotation.__dict__)
    moved.input_qspec_map = {
        nodes.get(node, node): _moved_spec(spec, nodes) for node, spec in annotation.input_qspec_map.items()
    }
    moved.output_qspec = _moved_spec(annotation.output_qspec, nodes)
    return moved


def _moved_point(point: EdgeOrNode, nodes: Mapping[Node, Node]) -> EdgeOrNode:
    if isinstance(point, tuple):
        return nodes.get(point[0], point[0]), nodes.get(point[1], point[1])
    return nodes.get(point, point)


def _moved_spec(spec: Any, nodes: Mapping[Node, Node]) -> Any:  # as in _moved_annotation
    if hasattr(spec, "edge_or_node"):
        return replace(spec, edge_or_node=_moved_point(spec.edge_or_node, nodes))
    if hasattr(spec, "derived_from"):
        return replace(spec, derived_from=[_moved_point(point, nodes) for point in spec.derived_from])
    return spec


def _clone_buffer(module: GraphModule, target: str) -> None:
    value = attribute(module, target)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        set_attribute(module, target, value.clone())
