"""Rewriting of the exported model: constants of integers, constant folding, metadata."""

from collections.abc import Iterable
from typing import Any

from qspec_core.onnx._libraries import library

__all__ = ["SHIFT", "fold_integers", "optimize", "set_versions", "unsigned_activations"]

Model = Any  # onnx_ir.Model, which has no types here
SHIFT = 128
"""uint8 integers and zero points minus those of int8, for the same real numbers."""
_FOUR_BITS = ("INT4", "UINT4")
_IR_VERSION = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 11, 25: 12}
"""The IR version of the release of ONNX that brought an opset."""


def set_versions(model: Model, opset: int) -> None:
    """Note the oldest IR version that has the opset, and that qspec wrote the model."""
    model.ir_version = max(_IR_VERSION[opset], model.ir_version if opset < 23 else 0)
    model.producer_name = "qspec"


def fold_integers(model: Model) -> None:
    """Store constants in the form in which a DequantizeLinear reads them: in 4 bits, one group in each row.

    Cost: O(nodes), and a copy of each constant that changes.
    """
    graph = model.graph
    ir = library("onnx_ir")
    for node in list(graph):
        source = node.inputs[0] if node.inputs else None
        if source is None or source.const_value is None or source.name not in graph.initializers:
            continue
        constant = source.const_value
        if node.op_type == "Cast" and ir.DataType(node.attributes["to"].as_int()).name in _FOUR_BITS:
            dtype = ir.DataType(node.attributes["to"].as_int())
            _replace(model, node, constant.numpy().astype(dtype.numpy()), dtype)
        elif node.op_type == "Reshape" and source.dtype.name in ("INT8", "UINT8", "INT16", "UINT16"):
            shape = ir.convenience.get_const_tensor(node.inputs[1])
            if shape is not None:
                _replace(model, node, constant.numpy().reshape(shape.numpy()), source.dtype)


def _replace(model: Model, node: Any, array: Any, dtype: Any) -> None:
    """Replace a node by a constant, and remove the constant that nothing reads any more."""
    ir, graph, source, output = library("onnx_ir"), model.graph, node.inputs[0], node.outputs[0]
    name = source.name if len(source.uses()) == 1 else f"{source.name}_{output.name}"
    graph.remove(node, safe=False)
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)
    if not source.uses():
        del graph.initializers[source.name]
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(dtype),
        const_value=ir.tensor(array, dtype=dtype, name=name),
    )
    value.metadata_props.update(source.metadata_props)
    graph.register_initializer(value)
    ir.convenience.replace_all_uses_with(output, value)


def unsigned_activations(model: Model) -> None:
    """Write activations of int8 as uint8, with zero points 128 larger: the same real numbers.

    On x86, ONNX Runtime 1.31 turns some int8 activations into uint8 itself, and then finds layers that read one and
    write the other, which it does not fuse: 14 of 50 layers of EfficientNet-Lite0.

    Cost: O(nodes).
    """
    ir = library("onnx_ir")
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.op_type != "QuantizeLinear" or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        zero = ir.convenience.get_const_tensor(node.inputs[2])
        clips = [usage[0] for usage in node.outputs[0].uses() if usage[0].op_type == "Clip"]
        readers = [usage[0] for value in _results(node, clips) for usage in value.uses() if usage[0] not in clips]
        is_plain = bool(readers) and all(reader.op_type == "DequantizeLinear" for reader in readers)
        is_result = any(value.is_graph_output() for value in _results(node, clips))
        if zero is None or zero.dtype.name != "INT8" or not is_plain or is_result:
            continue
        for user, places in (
            (node, (2,)),
            *((clip, (1, 2)) for clip in clips),
            *((reader, (2,)) for reader in readers),
        ):
            for place in places:
                _shift(model, user, place)
        for value in _results(node, clips):
            value.dtype = ir.DataType.UINT8


def _results(quantize: Any, clips: list[Any]) -> list[Any]:
    """The integers that a QuantizeLinear writes, before and after a Clip."""
    return [quantize.outputs[0], *(clip.outputs[0] for clip in clips)]


def _shift(model: Model, node: Any, place: int) -> None:
    """Replace a constant of int8 that a node reads by one of uint8 for the same real number."""
    ir, numpy = library("onnx_ir"), library("numpy")
    value = node.inputs[place]
    name = f"{value.name}_unsigned"
    if name not in model.graph.initializers:
        array = (value.const_value.numpy().astype(numpy.int16) + SHIFT).astype(numpy.uint8)
        stored = ir.tensor(array, dtype=ir.DataType.UINT8, name=name)
        kind = ir.TensorType(ir.DataType.UINT8)
        model.graph.register_initializer(
            ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=stored)
        )
    node.replace_input_with(place, model.graph.initializers[name])
    if not value.uses() and value.name in model.graph.initializers:
        del model.graph.initializers[value.name]


def optimize(model: Model, kept: Iterable[str]) -> None:
    """Fold constants, inline functions, and remove what nothing reads.

    Args:
        kept: original names of the integer constants that must not be folded into floats.
    """
    graph, names = model.graph, set(kept)
    held = [value for value in graph.initializers.values() if value.metadata_props.get(_ORIGINAL) in names]
    graph.inputs.extend(held)  # what may be overridden from outside is not folded
    library("onnxscript.optimizer").optimize_ir(model)
    for value in held:
        graph.inputs.remove(value)


_ORIGINAL = "pkg.torch.onnx.original_node_name"
