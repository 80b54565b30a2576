"""Names in the file: those of the user's model, as far as it has them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qspec_core import ops
from qspec_core._errors import module_path
from qspec_core._torch import output_keys
from qspec_core.graph import argument, argument_names, called_operator, graph_modules
from qspec_core.onnx._libraries import library

__all__ = ["MODULE_KEY", "NODE_KEY", "name_model", "output_names", "renamed_sizes", "weight_names"]

Model = Any  # onnx_ir.Model, which has no types here
NODE_KEY, MODULE_KEY = "qspec.node", "qspec.module"
"""Keys of a node's metadata: the node of the converted graph that it comes from, and the path of its module."""
_DEQUANTIZES = "DequantizeLinear"


def weight_names(converted: GraphModule) -> dict[str, str]:
    """The name in the user's model of each constant of integers: the module's path and the operand, `fc1.weight`."""
    found: dict[str, str] = {}
    for prefix, body in graph_modules(converted):
        for node in body.graph.nodes:
            source = argument(node, "input") if ops.is_dequantize(node) else None
            if prefix or not isinstance(source, Node) or source.op != "get_attr":
                continue
            reader, operand = _reader_of(node)
            path = module_path(node if reader is None else reader)
            name = f"{path}.{operand}" if path else operand
            if name not in found.values():
                found.setdefault(str(source.target), name)
    return found


def _reader_of(node: Node) -> tuple[Node | None, str]:
    """The first operator that reads a node, and the name of the argument, past steps that only change the shape."""
    for reader in node.users:
        called = called_operator(reader)
        for name in argument_names(called) if called is not None else ():
            if argument_or_none(reader, name) is node:
                return _reader_of(reader) if name in ("self", "x") and len(node.users) == 1 else (reader, name)
    return None, "constant"


def argument_or_none(node: Node, name: str) -> Any:  # as `argument`
    """An operand of a call, or None where the call and the schema leave it out."""
    try:
        return argument(node, name)
    except ValueError:
        return None


def output_names(program: torch.export.ExportedProgram) -> list[str]:
    """A name for each output: its keys in what the model returns, else `output` with a number."""
    names = [".".join(parts) for parts in output_keys(program)]
    taken = {node.name for node in program.graph.nodes if node.op == "placeholder"}
    made = [f"output_{name}" if name[:1].isdigit() else name or "output" for name in names]
    return [f"{name}_out" if name in taken else name for name in made]


def size_names(inputs: Any, dynamic_shapes: Any) -> Iterator[Mapping[int, str]]:  # as torch.export takes them
    """The names that the user gave to sizes of each input tensor, by dimension."""
    if isinstance(inputs, Tensor):
        sizes = dict(enumerate(dynamic_shapes)) if isinstance(dynamic_shapes, list | tuple) else dynamic_shapes or {}
        names = {index: getattr(size, "__name__", size) for index, size in sizes.items()}
        yield {index: name for index, name in names.items() if isinstance(name, str)}
    elif isinstance(inputs, list | tuple):
        values = dynamic_shapes.values() if isinstance(dynamic_shapes, dict) else dynamic_shapes
        specs = [None] * len(inputs) if values is None else list(values)
        for value, spec in zip(inputs, specs, strict=False):
            yield from size_names(value, spec)
    elif isinstance(inputs, dict):
        for key, value in inputs.items():
            yield from size_names(value, None if dynamic_shapes is None else dynamic_shapes.get(key))


def renamed_sizes(model: Model, inputs: Any, dynamic_shapes: Any) -> dict[Any, str]:  # as in size_names
    """The user's name of each symbol in the shapes of a model's inputs."""
    found: dict[Any, str] = {}
    for value, names in zip(model.graph.inputs, size_names(inputs, dynamic_shapes), strict=False):
        found |= {value.shape[index]: name for index, name in names.items() if not isinstance(value.shape[index], int)}
    return found


def name_model(model: Model, converted: GraphModule, outputs: Iterable[str]) -> None:
    """Give inputs, outputs, nodes and constants of an exported model the names of the user's model.

    A node is called `module.path/node`, where `node` is its name in the converted graph. So is the tensor that it
    computes.
    """
    graph = model.graph
    graph.metadata_props.clear()
    _name_nodes(model, {node.name for _, body in graph_modules(converted) for node in body.graph.nodes})
    _name_constants(model, weight_names(converted))
    used = {value.name for node in _nodes(model) for value in node.outputs}
    for value, name in zip(graph.outputs, outputs, strict=True):
        if value.producer() is not None and name not in used:
            value.name = name


def _nodes(model: Model) -> Iterator[Any]:
    yield from library("onnx_ir").traversal.RecursiveGraphIterator(model.graph)


def _name_nodes(model: Model, known: set[str]) -> None:
    """Name nodes and their results. Of several nodes of one origin, the last one has its name."""
    last = {origin: node for node in _nodes(model) if (origin := _origin(node, known)) is not None}
    names: set[str] = set()
    for node in _nodes(model):
        fx, origin = node.meta.get("node"), _origin(node, known)
        path = module_path(fx) if isinstance(fx, Node) else ""
        node.metadata_props.clear()
        if origin is not None:
            node.metadata_props[NODE_KEY] = origin
        if path:
            node.metadata_props[MODULE_KEY] = path
        base = origin or (fx.name if isinstance(fx, Node) else node.op_type.lower())
        name = f"{path}/{base}" if path else base
        if origin is None or last[origin] is not node:
            name = f"{name}/{node.op_type}"
        elif len(node.outputs) == 1 and not node.outputs[0].is_graph_output():
            node.outputs[0].name = origin
        node.name = _unique(name, names)
        for value in node.outputs:
            value.metadata_props.clear()


def _origin(node: Any, known: set[str]) -> str | None:
    """Name of the node of the converted graph that a node comes from."""
    fx = node.meta.get("node")
    history = list(fx.meta.get("from_node") or []) if isinstance(fx, Node) else []
    while history:
        source = history[-1]
        if source.name in known:
            return str(source.name)
        history = list(source.from_node or [])
    return None


def _name_constants(model: Model, names: dict[str, str]) -> None:
    """Name integers by their place in the model, and the parameters of every quantized tensor after it."""
    graph = model.graph
    for value in list(graph.initializers.values()):
        value.metadata_props.clear()
        if value.name in names and names[value.name] not in graph.initializers:
            value.name = names[value.name]
    given: set[str] = set()
    for node in _nodes(model):
        if node.op_type not in ("QuantizeLinear", _DEQUANTIZES):
            continue
        base = _integers(node).name
        for index, what in enumerate(("scale", "zero_point"), start=1):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and value.name in graph.initializers:
                _name_parameter(graph, node, index, f"{base}.{what}", given)


def _integers(node: Any) -> Any:  # onnx_ir.Node and onnx_ir.Value
    """The tensor of integers of a QuantizeLinear, after the Clip that narrows it, or of a DequantizeLinear."""
    if node.op_type == _DEQUANTIZES:
        return node.inputs[0]
    readers = [usage[0] for usage in node.outputs[0].uses()]
    return readers[0].outputs[0] if len(readers) == 1 and readers[0].op_type == "Clip" else node.outputs[0]


def _name_parameter(graph: Any, node: Any, index: int, name: str, given: set[str]) -> None:
    """Name a scale or zero point after its tensor. Each tensor gets its own.

    ONNX Runtime 1.31 does not start with kernels that do not saturate if two weights share a zero point.
    """
    value = node.inputs[index]
    if name in given:
        node.replace_input_with(index, graph.initializers[name])
    elif value.name not in given and name not in graph.initializers:
        value.name = name
        given.add(name)
    elif name not in graph.initializers:
        ir = library("onnx_ir")
        array, dtype = value.const_value.numpy(), value.const_value.dtype
        stored = ir.tensor(array, dtype=dtype, name=name)
        own = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=stored)
        graph.register_initializer(own)
        node.replace_input_with(index, own)
        given.add(name)


def _unique(name: str, names: set[str]) -> str:
    """A name that is not taken yet."""
    made, count = name, 1
    while made in names:
        made, count = f"{name}_{count}", count + 1
    names.add(made)
    return made
