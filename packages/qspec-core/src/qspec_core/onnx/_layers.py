"""Layers of a file, and the kernels that ONNX Runtime runs them with."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qspec_core.onnx._libraries import library
from qspec_core.onnx._names import MODULE_KEY

__all__ = ["OnnxLayer", "layers_of"]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")
_WITH_WEIGHT = ("Conv", "ConvTranspose", "Gather")
_POINTWISE = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh")
_INTEGER_KERNELS = (
    *("QLinearConv", "QLinearMatMul", "QLinearConvTranspose", "QGemm", "ConvInteger", "MatMulInteger"),
    *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits", "GatherBlockQuantized"),
)


@dataclass(frozen=True)
class OnnxLayer:
    """A layer with integers among its operands, and how a runtime runs it.

    Args:
        name: name of the layer's node.
        module: path of its module.
        operator: its ONNX operator.
        kernel: the integer kernel; empty if it runs in float.
        reason: why it runs in float; empty if it does not.
    """

    name: str
    module: str
    operator: str
    kernel: str
    reason: str

    @property
    def is_integer(self) -> bool:
        """Whether it runs in integers."""
        return bool(self.kernel)


def layers_of(model: Any, optimized: Any) -> tuple[OnnxLayer, ...]:  # two of onnx_ir.Model
    """The layers of a file with the kernels of the graph that ONNX Runtime made of it, in graph order.

    A kernel is found by the name of the layer, which the runtime keeps, or by its weight.
    """
    by_name: dict[str, str] = {}
    by_constant: dict[str, str] = {}
    for node in _nodes(optimized):
        if node.op_type not in _INTEGER_KERNELS:
            continue
        by_name[node.name] = node.op_type
        by_constant |= {value.name: node.op_type for value in node.inputs if value is not None and _is_stored(value)}
    found = []
    for node in _nodes(model):
        if node.op_type not in _LAYERS or not any(map(_dequantize_of, node.inputs)):
            continue
        kernel = by_name.get(node.name, "") or _by_weight(node, by_constant)
        reason = "" if kernel else _reason(node)
        found.append(OnnxLayer(node.name, node.metadata_props.get(MODULE_KEY, ""), node.op_type, kernel, reason))
    return tuple(found)


def _nodes(model: Any) -> Iterator[Any]:
    yield from library("onnx_ir").traversal.RecursiveGraphIterator(model.graph)


def _is_stored(value: Any) -> bool:
    return value.const_value is not None and value.const_value.size > 1


def _by_weight(node: Any, kernels: dict[str, str]) -> str:
    for value in node.inputs:
        dequantize = _dequantize_of(value)
        if dequantize is not None and dequantize.inputs[0].name in kernels:
            return kernels[dequantize.inputs[0].name]
    return ""


def _dequantize_of(value: Any) -> Any:  # an onnx_ir.Node
    """The DequantizeLinear that computes a value, past a Transpose or Reshape."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in ("Transpose", "Reshape", "Cast"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _reason(node: Any) -> str:
    """Why a runtime that fuses a layer with the nodes around it finds no integer kernel for this one."""
    inputs = [value for value in node.inputs[: 1 if node.op_type in _WITH_WEIGHT else 2] if value is not None]
    if node.op_type == "Gather":
        return "a table is read in float: the runtime dequantizes it first"
    if not all(map(_dequantize_of, inputs)):
        return "an activation is not quantized"
    if _dequantize_of(node.inputs[1]) is None:
        return "the weight is not quantized"
    source = _dequantize_of(node.inputs[0]).inputs[0].producer()
    if source is not None and source.op_type not in ("QuantizeLinear", "Clip", "DynamicQuantizeLinear"):
        return f"its input comes from {source.op_type}"
    block = _dequantize_of(node.inputs[1]).attributes.get("block_size")
    if block is not None and block.as_int() > 0:
        return "the runtime has no kernel for groups of this size and integers of this width"
    reader, crossed = node, ""
    while True:
        readers = [usage[0] for usage in reader.outputs[0].uses()]
        if reader.outputs[0].is_graph_output() or len(readers) != 1:
            return "its result is read as real numbers"
        reader = readers[0]
        if reader.op_type == "QuantizeLinear" and crossed:
            return f"{crossed} stands before the QuantizeLinear, whose range it does not fill"
        if reader.op_type == "QuantizeLinear":
            return "the runtime has no integer kernel for it with these operands"
        if reader.op_type not in _POINTWISE:
            return f"its result is read as real numbers, by {reader.op_type}"
        crossed = reader.op_type
