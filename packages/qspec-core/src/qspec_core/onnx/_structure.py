"""Structure of a file: constants of integers that are stored as floats too."""

from collections.abc import Iterator
from typing import Any

from qspec_core.onnx._libraries import library

__all__ = ["float_copies"]

Array = Any  # numpy.ndarray
_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")
_FEW = 16
"""Constants of fewer elements are not compared: small ones are alike by chance."""


def float_copies(model: Any) -> list[str]:  # an onnx_ir.Model
    """Float constants that hold the values of a quantized constant, by name.

    Cost: O(constants of integers), each with the float constants of as many elements.
    """
    floats = [value for value in model.graph.initializers.values() if _is_float(value)]
    found = []
    for node in model.graph:
        if node.op_type != "DequantizeLinear":
            continue
        source = node.inputs[0]
        if source.const_value is None or source.const_value.size < _FEW:
            continue
        alike = [value for value in floats if value.const_value.size == source.const_value.size]
        if alike:
            found += [f"{value.name} of {source.name}" for value in _copies(node, alike)]
    return found


def _is_float(value: Any) -> bool:
    return value.const_value is not None and value.const_value.dtype.name in _FLOATS


def _copies(node: Any, floats: list[Any]) -> Iterator[Any]:
    """The float constants that are within a step of the dequantized one."""
    numpy = library("numpy")
    inputs = [value.const_value.numpy() for value in node.inputs if value is not None and value.const_value is not None]
    if len(inputs) < 2:
        return
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    block = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
    integers = inputs[0].astype(numpy.float32)
    scale, zero = (_along(part, integers, axis, block) for part in (inputs[1], inputs[2] if len(inputs) > 2 else 0))
    reals = (integers - zero) * scale
    step = float(numpy.max(scale))
    for value in floats:
        array = value.const_value.numpy().astype(numpy.float32)
        for candidate in (array.ravel(), array.T.ravel()):
            if numpy.all(numpy.abs(candidate - reals.ravel()) <= step):
                yield value
                break


def _along(part: Any, like: Array, axis: int, block: int) -> Array:
    """Parameters that broadcast against the integers: (channels,) -> (1, channels, 1...), groups repeated."""
    numpy = library("numpy")
    array = numpy.asarray(part).astype(numpy.float32)
    if block:
        return numpy.repeat(array, block, axis=axis)
    if array.ndim == 1:
        return array.reshape([-1 if index == axis % like.ndim else 1 for index in range(like.ndim)])
    return array
