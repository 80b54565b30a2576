"""Activations with a range for each row, for a kernel that takes one scale and one zero point.

The kernel reads `q + 128` with scale 1 and zero point 128, and gives `sum(q * w)` in float. Then, with the scale and
the zero point of the row: `(sum(q * w) - zero_point * sum(w)) * scale + bias`. The compiler fuses that with the
operators after it. A single row needs none of this: its scale is that of the tensor.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from qspec_core import ops
from qspec_core.graph import argument, is_call, require_tensor_value, tensor_value
from qspec_core.lowering import Lowering, Quantized, Weight
from qspec_core.patterns import Reason
from qspec_x86._lowering._options import Options

__all__ = ["has_one_row", "kernel_form", "one_row", "rescale_rows", "unfit_tokens", "unsigned_rows"]

aten = torch.ops.aten
_MIDDLE = 128


def unfit_tokens(source: Quantized) -> Reason | None:
    """Reason why a kernel cannot read an activation with these parameters for each row; None if it can."""
    if not is_call(source.integers, ops.QUANTIZE_PER_TOKEN):
        return Reason.unsupported("an activation with a scale for each row is not read as it was quantized")
    if not source.is_dynamic:
        return Reason.unsupported("an activation has constant scales for each row")
    if (source.dtype, source.quant_min, source.quant_max) != (torch.int8, -128, 127):
        return Reason.unsupported(
            f"an activation by row is {source.dtype}, {source.quant_min}..{source.quant_max}; "
            "the kernel takes the range -128..127"
        )
    return None


def kernel_form(source: Quantized) -> Quantized:
    """The activation as the kernel reads it: uint8, with constant parameters. Its integers are still the int8 ones."""
    return replace(
        source,
        scale=1.0,
        zero_point=_MIDDLE,
        quant_min=0,
        quant_max=2 * _MIDDLE - 1,
        dtype=torch.uint8,
        by_token=False,
    )


def has_one_row(x: Node) -> bool:
    """Whether a tensor is one row, in all calls."""
    value = tensor_value(x)
    if value is None:
        return False
    shape: Sequence[int | torch.SymInt] = value.shape
    return all(isinstance(size, int) and size == 1 for size in shape[:-1])


def one_row(lowering: Lowering[Options], source: Quantized) -> Quantized:
    """The activation of one row as the kernel reads it: its parameters are those of the tensor."""
    scale = _shared(lowering, source, aten.reshape.default, _scale(lowering, source), [1])
    shifted = _shared(lowering, source, aten.add.Scalar, _zero_point(lowering, source), _MIDDLE)
    flat = _shared(lowering, source, aten.reshape.default, shifted, [1])
    zero_point = _shared(lowering, source, aten.to.dtype, flat, torch.int64)
    return replace(kernel_form(source), scale=scale, zero_point=zero_point)


def unsigned_rows(lowering: Lowering[Options], source: Quantized) -> Node:
    """Node of the integers plus 128, uint8. Layers with one input share it."""
    x = argument(source.integers, "input")
    steps = _shared(lowering, source, aten.reciprocal.default, _scale(lowering, source))
    middle = _shared(lowering, source, aten.add.Scalar, _zero_point(lowering, source), _MIDDLE)
    shifted = _shared(lowering, source, aten.addcmul.default, middle, x, steps)
    rounded = _shared(lowering, source, aten.round.default, shifted)
    clamped = _shared(lowering, source, aten.clamp.default, rounded, 0, 2 * _MIDDLE - 1)
    integers = _shared(lowering, source, aten.to.dtype, clamped, torch.uint8)
    integers.meta["val"] = require_tensor_value(source.integers).to(torch.uint8)
    return integers


def rescale_rows(
    lowering: Lowering[Options], anchor: Node, result: Node, source: Quantized, weight: Weight, bias: Node | None
) -> Node:
    """Insert the multiplication by the scales of the rows, after the kernel.

    Args:
        lowering: the graph.
        anchor: the layer.
        result: the kernel's result, (..., outputs), for scale 1.
        source: the activation, with a scale (..., 1).
        weight: (outputs, features).
        bias: node of the bias, (outputs,); None where there is none.
    """
    scale = _scale(lowering, source)
    if not _is_symmetric(source):
        sums = weight.integers.sum(dim=1, dtype=torch.int32).to(torch.float32) * weight.scale
        negative = lowering.constant("_x86_sums", -sums, anchor)
        result = lowering.call(anchor, aten.addcmul.default, result, _zero_point(lowering, source), negative)
    if bias is None:
        return lowering.call(anchor, aten.mul.Tensor, result, scale)
    return lowering.call(anchor, aten.addcmul.default, bias, result, scale)


def _is_symmetric(source: Quantized) -> bool:
    """Whether the zero points are 0."""
    zero_point = source.zero_point
    return isinstance(zero_point, Node) and bool(
        ops.CHOOSE_QPARAMS_PER_TOKEN in (node.target for node in zero_point.all_input_nodes)
    )


def _scale(lowering: Lowering[Options], source: Quantized) -> Node:
    """Scale of each row, float32, (..., 1)."""
    return _shared(lowering, source, aten.to.dtype, source.scale, torch.float32)


def _zero_point(lowering: Lowering[Options], source: Quantized) -> Node:
    """Zero point of each row, float32, (..., 1)."""
    return _shared(lowering, source, aten.to.dtype, source.zero_point, torch.float32)


def _shared(
    lowering: Lowering[Options],
    source: Quantized,
    target: Any,
    *args: Any,  # operators and arguments of any type
) -> Node:
    """The call of an operator that is there already, or a new one before the quantize."""
    found = next((user for user in args[0].users if user.target is target and user.args == args), None)
    return lowering.call(source.integers, target, *args) if found is None else found
