"""Rewriting of the exported model: constants of integers, constant folding, metadata."""

from collections.abc import Iterable
from typing import Any

from qspec_core.onnx._libraries import library

__all__ = ["fold_integers", "optimize", "set_versions"]

Model = Any  # onnx_ir.Model, which has no types here
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
