"""Profiles: how a file is written for the consumer that reads it, and which quantization that consumer takes.

Sources: ONNX Runtime, "Quantize ONNX models" (onnxruntime.ai/docs/performance/model-optimizations/quantization.html);
OpenVINO, "Low Precision Transformations" (docs.openvino.ai), whose FakeQuantize takes the place of a QuantizeLinear
followed at once by its DequantizeLinear; TensorRT developer guide, "Working with Quantized Types": explicit
quantization is symmetric, in int8, float8 and, for weights, int4, with a scale for a tensor, or for a channel or group
of a weight.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from qspec_core.graph import constant_value, graph_modules
from qspec_core.lowering import Quantized, quantized_value
from qspec_core.onnx._errors import OnnxExportError

__all__ = ["PROFILES", "Profile", "profile_of", "require_accepted"]

Refusal = Callable[[GraphModule, Quantized], str]
"""Gives the reason why a consumer cannot take a quantized tensor; an empty text if it can."""


def accepts_everything(graph: GraphModule, quantized: Quantized) -> str:
    """No reason: whatever has no kernel runs in float."""
    return ""


def refuses_tokens(graph: GraphModule, quantized: Quantized) -> str:
    """OpenVINO fuses parameters of a tensor, a channel and a group; those of a token stay arithmetic."""
    return "parameters by token are plain arithmetic, which it does not fuse" if quantized.by_token else ""


def refuses_affine(graph: GraphModule, quantized: Quantized) -> str:
    """TensorRT takes symmetric int8, float8 and int4, with scales that are constants."""
    if quantized.is_dynamic or quantized.by_token:
        return "scales must be constants"
    if quantized.dtype not in (torch.int8, torch.float8_e4m3fn):
        return f"{str(quantized.dtype).removeprefix('torch.')} is not one of its dtypes: int8, float8_e4m3fn, int4"
    zero = quantized.zero_point
    value = constant_value(graph, zero) if isinstance(zero, Node) else None if zero is None else torch.tensor(zero)
    if value is not None and bool(value.any()):
        return "zero points must be 0"
    is_constant = constant_value(graph, quantized.integers) is not None
    if not is_constant and (quantized.ch_axis is not None or quantized.group_size is not None):
        return "activations have one scale"
    return ""


@dataclass(frozen=True)
class Profile:
    """The forms that one consumer fuses.

    Args:
        name: the consumer.
        clips_floats: a range narrower than its dtype is a Clip before the QuantizeLinear, which a convolution can take
            in, not one of integers after it. ONNX Runtime fuses a layer only if its QuantizeLinear comes at once.
        has_dynamic_quantize: the consumer runs DynamicQuantizeLinear.
        unsigned: activations of int8 are written as uint8.
        refuses: the quantization that it cannot take.
    """

    name: str
    clips_floats: bool = False
    has_dynamic_quantize: bool = True
    unsigned: bool = False
    refuses: Refusal = accepts_everything


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("plain"),
        Profile("onnxruntime", unsigned=True),
        Profile("openvino", clips_floats=True, refuses=refuses_tokens),
        Profile("tensorrt", clips_floats=True, has_dynamic_quantize=False, refuses=refuses_affine),
    )
}


def profile_of(name: str | None) -> Profile:
    """The profile of a name; None for the plain one.

    Raises: OnnxExportError: there is no such profile.
    """
    found = PROFILES.get("plain" if name is None else name)
    if found is None:
        raise OnnxExportError(
            f"there is no profile {name!r}",
            found=name,
            expected=", ".join(PROFILES),
            remedy="name one of the profiles listed, or None",
        )
    return found


def require_accepted(graph: GraphModule, profile: Profile) -> None:
    """Raises: OnnxExportError: the consumer cannot take a quantized tensor of the graph; it names the first."""
    for _, body in graph_modules(graph):
        for node in body.graph.nodes:
            quantized = quantized_value(node)
            reason = "" if quantized is None else profile.refuses(body, quantized)
            if reason:
                raise OnnxExportError(
                    f"profile {profile.name!r} cannot take this quantization: {reason}",
                    where=node,
                    found=node.format_node(),
                    expected=reason,
                    remedy="quantize with a configuration that it takes, such as symmetric int8, or leave out profile=",
                )
