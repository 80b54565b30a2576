"""Scales, zero points, axes and ranges of a file, and their comparison with the converted graph."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from qspec_core.graph import constant_value
from qspec_core.lowering import Quantized, quantized_value
from qspec_core.onnx._emit import RANGES
from qspec_core.onnx._files import read_model
from qspec_core.onnx._libraries import library
from qspec_core.onnx._names import NODE_KEY
from qspec_core.onnx._rewrite import SHIFT

__all__ = ["OnnxParameters", "ParameterComparison", "compare_parameters", "parameters_of", "read_parameters"]

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_CLAMPS = {torch.ops.aten.relu.default, torch.ops.aten.hardtanh.default, torch.ops.aten.clamp.default}
_SCALE_ERROR = 2.0**-20
"""Relative error of a scale that was rounded to float32."""


@dataclass(frozen=True)
class OnnxParameters:
    """How one tensor of a file is quantized.

    Args:
        tensor: name of the tensor of integers.
        node: name of the node that quantizes or dequantizes it.
        origin: name of the node of the converted graph that it comes from; empty in files of other tools.
        dtype: dtype of the integers, by its ONNX name in small letters.
        scale: scales, one or more; empty if they are computed when the model runs.
        zero_point: zero points, as scales; empty if the node has none, which means 0.
        axis: dimension with one scale for each index or group; None for one scale in all.
        group_size: elements along the axis that share a scale; None without groups.
        quant_min: smallest integer; a Clip may narrow the dtype's.
        quant_max: largest integer.
        is_quantize: whether the node is a QuantizeLinear.
        is_constant: whether the tensor is stored in the file.
    """

    tensor: str
    node: str
    origin: str
    dtype: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None
    group_size: int | None
    quant_min: int | None
    quant_max: int | None
    is_quantize: bool
    is_constant: bool


def read_parameters(path: str | Path) -> dict[str, OnnxParameters]:
    """Read the parameters of every quantized tensor of a file.

    Args:
        path: an ONNX file.
    Returns: the parameters by the name of the tensor of integers.
    Raises: OnnxCheckError: the file cannot be read.
    """
    found: dict[str, OnnxParameters] = {}
    for entry in parameters_of(read_model(Path(path))):
        known = found.get(entry.tensor)
        if known is None or (entry.is_quantize and not known.is_quantize):
            found[entry.tensor] = entry
    return found


def parameters_of(model: Any) -> list[OnnxParameters]:  # an onnx_ir.Model
    """The parameters at every QuantizeLinear and DequantizeLinear, in graph order."""
    nodes = library("onnx_ir").traversal.RecursiveGraphIterator(model.graph)
    return [_read(node) for node in nodes if node.op_type in (_QUANTIZE, _DEQUANTIZE)]


def _read(node: Any) -> OnnxParameters:  # an onnx_ir.Node
    is_quantize = node.op_type == _QUANTIZE
    integers = node.outputs[0] if is_quantize else node.inputs[0]
    scale, zero = _constant(node.inputs[1]), _constant(node.inputs[2] if len(node.inputs) > 2 else None)
    zero_dtype = node.inputs[2].dtype if len(node.inputs) > 2 and node.inputs[2] is not None else None
    stored = None if integers.const_value is None else integers.const_value.dtype
    kind = next((dtype for dtype in (stored, integers.dtype, zero_dtype) if dtype is not None), None)
    name = "" if kind is None else kind.name
    block = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
    is_scalar = scale is not None and scale.size == 1 and scale.ndim == 0
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    low, high = _clipped(node, scale, zero) if is_quantize else (None, None)
    natural = RANGES.get(name, (None, None))
    return OnnxParameters(
        tensor=_clip_after(node).outputs[0].name if is_quantize and _clip_after(node) is not None else integers.name,
        node=node.name,
        origin=node.metadata_props.get(NODE_KEY, ""),
        dtype=name.lower(),
        scale=() if scale is None else tuple(float(value) for value in scale.ravel()),
        zero_point=() if zero is None else tuple(int(value) for value in zero.ravel()),
        axis=None if scale is None or is_scalar else axis,
        group_size=block or None,
        quant_min=natural[0] if low is None else low,
        quant_max=natural[1] if high is None else high,
        is_quantize=is_quantize,
        is_constant=integers.producer() is None and not integers.is_graph_input(),
    )


def _constant(value: Any) -> Any:  # an onnx_ir.Value; gives an array
    found = None if value is None else library("onnx_ir").convenience.get_const_tensor(value)
    return None if found is None else found.numpy()


def _clip_after(quantize: Any) -> Any:  # onnx_ir.Node
    """The Clip that is the only reader of a quantized tensor."""
    readers = [usage[0] for usage in quantize.outputs[0].uses()]
    return readers[0] if len(readers) == 1 and readers[0].op_type == "Clip" else None


def _clipped(quantize: Any, scale: Any, zero: Any) -> tuple[int | None, int | None]:
    """The range that a Clip of integers after a QuantizeLinear, or of real numbers before it, leaves."""
    after, before = _clip_after(quantize), quantize.inputs[0].producer()
    if after is not None:
        low, high = (_constant(value) for value in after.inputs[1:3])
        return (None, None) if low is None or high is None else (int(low), int(high))
    if before is None or before.op_type != "Clip" or scale is None or scale.size != 1 or len(before.inputs) < 3:
        return None, None
    name, offset = quantize.outputs[0].dtype.name, 0 if zero is None else int(zero.ravel()[0])
    natural = RANGES.get(name, (None, None))
    low, high = (_constant(value) for value in before.inputs[1:3])
    if low is None or high is None or natural[0] is None or natural[1] is None:
        return None, None
    step = float(scale.ravel()[0])
    return max(round(float(low) / step) + offset, natural[0]), min(round(float(high) / step) + offset, natural[1])


@dataclass(frozen=True)
class ParameterComparison:
    """The parameters of a file beside those of the converted graph.

    Args:
        equal: number of nodes whose parameters are equal.
        differing: one line for each node whose parameters differ.
        elsewhere: number of nodes that the file has no QuantizeLinear or DequantizeLinear for: plain arithmetic,
            parameters computed when the model runs, nodes that were merged.
    """

    equal: int
    differing: tuple[str, ...]
    elsewhere: int


def compare_parameters(converted: GraphModule, model: Any) -> ParameterComparison:  # an onnx_ir.Model
    """Compare every quantize and dequantize of a converted graph with the nodes of a file that come from it.

    The bodies of loops and branches are left out: their nodes may have the names of nodes of the graph.

    Cost: O(nodes + parameters).
    """
    written: dict[str, list[OnnxParameters]] = {}
    outer = {node.name for node in model.graph}
    for entry in (entry for entry in parameters_of(model) if entry.node in outer):
        written.setdefault(entry.origin, []).append(entry)
    differing, equal, elsewhere = [], 0, 0
    for wanted in _quantized(converted):
        entries = written.get(wanted.node.name, [])
        expected = _expected(converted, wanted)
        if expected is None or not entries:
            elsewhere += 1
            continue
        problems = [text for entry in entries for text in _differences(entry, expected)]
        differing += [f"{wanted.node.name}: {text}" for text in problems]
        equal += not problems
    return ParameterComparison(equal, tuple(differing), elsewhere)


def _quantized(converted: GraphModule) -> Iterator[Quantized]:
    for node in converted.graph.nodes:
        found = quantized_value(node)
        if found is not None:
            yield found


@dataclass(frozen=True)
class _Expected:
    scale: Tensor
    zero_point: Tensor
    quantized: Quantized
    limits: tuple[int, int]


def _expected(converted: GraphModule, quantized: Quantized) -> _Expected | None:
    """Parameters of the graph; None if they are computed when the model runs."""
    values = []
    for item in (quantized.scale, 0 if quantized.zero_point is None else quantized.zero_point):
        value = constant_value(converted, item) if isinstance(item, torch.fx.Node) else torch.as_tensor(item)
        if value is None:
            return None
        values.append(value.detach().reshape(-1).double().cpu())
    return _Expected(values[0], values[1], quantized, (quantized.quant_min, quantized.quant_max))


def _differences(entry: OnnxParameters, expected: _Expected) -> Iterator[str]:
    """A description of each difference."""
    wanted = expected.quantized
    entry = _as_signed(entry) if wanted.dtype is torch.int8 else entry
    scale = torch.tensor(entry.scale, dtype=torch.float64)
    if scale.numel() and scale.shape != expected.scale.shape:
        yield f"{scale.numel()} scales, {expected.scale.numel()} expected"
        return
    if scale.numel():
        off = ((scale - expected.scale).abs() / expected.scale).max().item()
        if off > _SCALE_ERROR:
            yield f"scale {off:.3g} times off"
    zero = torch.tensor(entry.zero_point, dtype=torch.float64)
    if not torch.equal(zero if zero.numel() else torch.zeros_like(expected.zero_point), expected.zero_point):
        yield f"zero point {list(entry.zero_point[:4])}, {expected.zero_point[:4].long().tolist()} expected"
    yield from _other_differences(entry, wanted, expected.limits)


def _as_signed(entry: OnnxParameters) -> OnnxParameters:
    """An activation of uint8 as int8, with a zero point 128 smaller: it has the same real numbers."""
    if entry.is_constant or entry.dtype != "uint8" or entry.quant_min is None or entry.quant_max is None:
        return entry
    low, high = entry.quant_min - SHIFT, entry.quant_max - SHIFT
    zero = tuple(value - SHIFT for value in entry.zero_point)
    return replace(entry, dtype="int8", zero_point=zero, quant_min=low, quant_max=high)


def _other_differences(entry: OnnxParameters, wanted: Quantized, limits: tuple[int, int]) -> Iterator[str]:
    rank = wanted.integers.meta["val"].dim() if "val" in wanted.integers.meta else None
    axis = wanted.ch_axis if wanted.group_size is None else 1
    if wanted.group_size is not None and entry.group_size is None:
        axis = 0  # one group in each row
    axis = axis % rank if axis is not None and rank else axis
    if len(entry.scale) > 1 and entry.axis != axis:
        yield f"axis {entry.axis}, {axis} expected"
    signed, is_signed = entry.dtype.startswith("int"), wanted.dtype in (torch.int8, torch.int16, torch.int32)
    if signed != is_signed and "int" in str(wanted.dtype):
        yield f"dtype {entry.dtype}, {wanted.dtype} expected"
    found = entry.quant_min, entry.quant_max
    if entry.is_quantize and found != limits and "int" in entry.dtype and not _is_clamped(wanted, found, limits):
        yield f"range {found[0]}..{found[1]}, {limits[0]}..{limits[1]} expected"


def _is_clamped(wanted: Quantized, found: tuple[int | None, int | None], limits: tuple[int, int]) -> bool:
    """Whether an activation before a quantize explains a narrower range: the Clip before it has taken that in."""
    source = wanted.node.args[0]
    if not isinstance(source, torch.fx.Node) or source.target not in _CLAMPS or None in found:
        return False
    low, high = found
    return low is not None and high is not None and limits[0] <= low < high <= limits[1]
