"""Graph modules that qspec owns: copies that share parameters, and the attributes their `get_attr` nodes read."""

import gc
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from qspec_core._torch import (
    FakeTensors,
    copy_persistence,
    forbid_mode_switch,
    forbid_pickling,
    history_after,
    move_codegen,
    schema_of,
    uncompiled,
)
from qspec_core.errors import GraphError
from qspec_core.patterns import argument, called_operator, written_arguments
from qspec_core.spec import Q_ANNOTATION_KEY, EdgeOrNode
from qspec_core.subgraphs import attribute, bodies, control_calls, set_attribute

__all__ = [
    "Constants",
    "WrapperModule",
    "add_constant",
    "computes_float",
    "constant_value",
    "copy_graph_module",
    "derived_meta",
    "fresh_attribute_name",
    "gc_paused",
    "is_float",
    "is_view",
    "model_is_exported",
    "mutated_attributes",
    "port_meta",
    "require_exported",
    "wrap_graph",
    "written_roots",
]


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


def require_exported(module: object, step: str) -> GraphModule:
    """The module itself, if it is a graph that `torch.export` made.

    Raises: GraphError: it is a plain module, an `ExportedProgram`, or a graph with no operators of torch in it.
    """
    if isinstance(module, GraphModule):
        return module
    if isinstance(module, torch.export.ExportedProgram):
        remedy = f"pass the program's module: {step}(program.module(), ...)"
    else:
        remedy = f"export it first: {step}(torch.export.export(model.eval(), example_inputs).module(), ...)"
    raise GraphError(
        f"{step} takes an exported graph module",
        found=f"{type(module).__module__}.{type(module).__qualname__}",
        expected="torch.fx.GraphModule from torch.export.export(...).module()",
        remedy=remedy,
    )


def model_is_exported(m: nn.Module) -> bool:
    """Whether a module is a graph that `torch.export` made, by the fake tensors that it leaves on the nodes."""
    return isinstance(m, GraphModule) and any("val" in node.meta for node in m.graph.nodes)


class WrapperModule(nn.Module):
    """A function as a module, so that it can be exported.

    Args:
        fn: called with the module's arguments.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # as the function's
        """Call the function."""
        return self.fn(*args, **kwargs)


def constant_value(module: nn.Module, node: object) -> Tensor | None:
    """Tensor that a `get_attr` node reads; None for any other node or value."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value = attribute(module, str(node.target))
    return value if isinstance(value, Tensor) else None


def is_float(node: object) -> bool:
    """Whether a node's value is one floating-point tensor, by the fake tensor in its metadata."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()


def is_view(node: object) -> bool:
    """Whether a node's value may share storage with its first input: by the operator's schema, or as an item of a list
    of such values."""
    while isinstance(node, Node) and node.op == "call_function" and node.target is operator.getitem:
        node = node.args[0]
    called = called_operator(node)
    return called is not None and any(value.alias_info is not None for value in schema_of(called).returns)


def computes_float(node: Node) -> bool:
    """Whether a node's value is a floating-point tensor, or a tuple whose first item is one."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, tuple | list) and value else value
    return isinstance(first, Tensor) and first.is_floating_point()


def derived_meta(source: Node, pass_name: str, reader: Node | None = None) -> dict[str, Any]:  # as node.meta is
    """Metadata of a node made for another: its value and place, and that it was made from it.

    Args:
        source: the node it is made for.
        pass_name: what makes it.
        reader: where the source has no place (an input, a constant), the place of this node is taken.
    """
    meta: dict[str, Any] = {"from_node": history_after(source, pass_name)}
    for key in ("val", "nn_module_stack", "stack_trace", "torch_fn"):
        if key in source.meta:
            meta[key] = source.meta[key]
        elif reader is not None and key != "val" and key in reader.meta:
            meta[key] = reader.meta[key]
    return meta


def port_meta(owner: Node, made: Node) -> None:
    """Give a node what users and quantizers noted on the operator that it serves."""
    made.meta |= {key: owner.meta[key] for key in ("stack_trace", "quantization_tag") if key in owner.meta}


def fresh_attribute_name(module: nn.Module, prefix: str) -> str:
    """The first of `prefix0`, `prefix1`, ... that the module does not have. Counters are kept on the module."""
    counters: dict[str, int] = module.__dict__.setdefault("_qspec_counters", {})
    index = counters.get(prefix, 0)
    while hasattr(module, f"{prefix}{index}"):
        index += 1
    counters[prefix] = index + 1
    return f"{prefix}{index}"


def add_constant(module: GraphModule, prefix: str, value: Tensor, before: Node, *, fake: Tensor | None = None) -> Node:
    """Store a tensor (as a parameter if it is one, else a buffer) and insert a node that reads it.

    Args:
        module: a graph module that qspec owns.
        prefix: start of the attribute's name; a number is added.
        value: the tensor; stored, not copied.
        before: node in front of which the new one goes.
        fake: a fake tensor of the same shape and dtype, where one is at hand; making one costs 0.3 ms.
    Returns: the `get_attr` node.
    """
    name = fresh_attribute_name(module, prefix)
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    else:
        module.register_buffer(name, value)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(name)
    if fake is None or fake.shape != value.shape or fake.dtype != value.dtype:
        example = next((n.meta["val"] for n in module.graph.nodes if isinstance(n.meta.get("val"), Tensor)), None)
        node.meta["val"] = FakeTensors(example).like(value)
    else:
        node.meta["val"] = fake
    return node


class Constants:
    """Tensors and submodules of a graph that is being written, before a module holds them.

    Args:
        source: module that the graph is written from; only read. Buffers that its graph mutates are cloned.
        graph: the graph being written, at whose insertion point nodes are made.
    """

    def __init__(self, source: GraphModule, graph: Graph) -> None:
        self._graph = graph
        self._counters: dict[str, int] = {}
        targets = (str(node.target) for node in source.graph.nodes if node.op in ("get_attr", "call_module"))
        self.attributes: dict[str, object] = {target: attribute(source, target) for target in targets}
        for target in mutated_attributes(source):
            value = self.attributes[target]
            self.attributes[target] = value.clone() if isinstance(value, Tensor) else value
        example = next((n.meta["val"] for n in source.graph.nodes if isinstance(n.meta.get("val"), Tensor)), None)
        self.fakes = FakeTensors(example)

    def add(self, prefix: str, value: Tensor, like: Node, pass_name: str) -> Node:
        """Keep a tensor under the first free name that starts with `prefix`, and write a node that reads it, with the
        metadata of the node that it stands for."""
        index = self._counters.get(prefix, 0)
        while f"{prefix}{index}" in self.attributes:
            index += 1
        self._counters[prefix] = index + 1
        self.attributes[f"{prefix}{index}"] = value
        return self.read(f"{prefix}{index}", like, pass_name)

    def read(self, name: str, like: Node, pass_name: str) -> Node:
        """Write a node that reads a tensor kept under this name."""
        node = self._graph.get_attr(name)
        node.meta = derived_meta(like, pass_name)
        node.meta["val"] = self.fakes.like(self.attributes[name])
        return node


def wrap_graph(
    source: GraphModule, graph: Graph, attributes: dict[str, object] | None = None, *, compiled: bool = True
) -> GraphModule:
    """Wrap a graph into a module.

    Args:
        source: module whose metadata the new one gets, and whose attributes its nodes name, by reference.
        graph: a graph that nothing else owns.
        attributes: what its nodes name instead, by target.
        compiled: False leaves its code to `recompile()` or the first call.
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
    Returns: a module that the caller owns, whose code is written by `recompile()` or the first call.
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


def _root(value: Any) -> tuple[Node, ...]:  # an operand, which is a node where it is a tensor
    while is_view(value):
        value = value.all_input_nodes[0]
    return (value,) if isinstance(value, Node) else ()


def mutated_attributes(module: GraphModule) -> set[str]:
    """Targets of the buffers that the graph, or a body in it, writes to."""
    return {str(root.target) for root in written_roots(module) if root.op == "get_attr"}


def _clone_buffer(module: GraphModule, target: str) -> None:
    value = attribute(module, target)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        set_attribute(module, target, value.clone())
