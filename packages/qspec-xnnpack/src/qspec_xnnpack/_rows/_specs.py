"""Checks and forms of the configured specs, operand by operand."""

from dataclasses import replace
from functools import lru_cache

import torch
from torch.fx import Node

from qspec_core import QuantizationSpec
from qspec_core.fake_quantize import AffineFakeQuantize, FakeQuantizeBase
from qspec_core.graph import argument, tensor_value
from qspec_core.observers import (
    AffineQuantizedMovingAverageMinMaxObserver,
    AffineQuantizedPlaceholderObserver,
    Granularity,
    MappingType,
    PerGroup,
    PerToken,
    build_observer,
)
from qspec_core.patterns import Reason
from qspec_xnnpack._rows._checks import shape_of

__all__ = [
    "FOUR_BITS",
    "by_token",
    "eight_bits",
    "full_precision",
    "granularity",
    "group_size",
    "has_four_bits",
    "one_group",
    "one_image",
    "whole_groups",
]

FOUR_BITS = (-8, 7)
"""Range that marks weights as 4 bits wide for the delegate."""
_BY_TOKEN = AffineQuantizedPlaceholderObserver.with_args(
    mapping_type=MappingType.ASYMMETRIC, target_dtype=torch.int8, granularity=PerToken()
)
_TRAINED_BY_TOKEN = AffineFakeQuantize.with_args(
    observer=AffineQuantizedMovingAverageMinMaxObserver,
    averaging_constant=1.0,
    mapping_type=MappingType.ASYMMETRIC,
    target_dtype=torch.int8,
    granularity=PerToken(),
)


def has_four_bits(spec: QuantizationSpec) -> bool:
    """Whether the delegate stores these weights in 4 bits."""
    return (spec.quant_min, spec.quant_max) == FOUR_BITS


@lru_cache
def granularity(spec: QuantizationSpec) -> Granularity | None:
    """Which elements share a scale, if the observer has such an attribute; observers of one fixed kind have none."""
    found = getattr(build_observer(spec), "granularity", None)
    return found if isinstance(found, Granularity) else None


def group_size(spec: QuantizationSpec) -> int | None:
    """Number of weights that share a scale along the input features; None if the spec is not by groups."""
    found = granularity(spec)
    return found.group_size if isinstance(found, PerGroup) else None


def by_token(node: Node, spec: QuantizationSpec, target: str) -> QuantizationSpec:
    """Give the dynamic input of a linear layer one scale for each row. The delegate computes that whatever the graph
    says, so the converted graph says the same."""
    if not spec.is_dynamic:
        return spec
    is_trained = isinstance(build_observer(spec), FakeQuantizeBase)
    return replace(spec, observer_or_fake_quant_ctr=_TRAINED_BY_TOKEN if is_trained else _BY_TOKEN)


def full_precision(node: Node, spec: QuantizationSpec) -> Reason | None:
    """Decline dynamic layers of float16: the dynamic kernels compute in float32."""
    value = tensor_value(argument(node, "input"))
    if spec.is_dynamic and value is not None and value.dtype is not torch.float32:
        return Reason.unsupported(f"dynamic, with an input of {value.dtype}: the dynamic kernels take torch.float32")
    return None


def one_image(node: Node, spec: QuantizationSpec) -> Reason | None:
    """Decline dynamic convolutions of several images: the delegate finds one scale for each image, the graph one for
    all. Those with one input channel in each group have no dynamic kernel."""
    if not spec.is_dynamic:
        return None
    reason = full_precision(node, spec)
    if reason is not None:
        return reason
    shape, weight = shape_of(argument(node, "input")), shape_of(argument(node, "weight"))
    if shape is not None and shape[0] != 1:
        return Reason.unsupported(f"dynamic, with a batch of {shape[0]}: the delegate finds one scale for each image")
    if weight is None:
        return None
    # (out, in / groups, kh, kw), or (in, out / groups, kh, kw) if transposed
    transposed = node.target is torch.ops.aten.conv_transpose2d.input
    channels = weight[0] // argument(node, "groups") if transposed else weight[1]
    if channels == 1:
        return Reason.unsupported(
            "dynamic, with one input channel in each group: the delegate takes it for depthwise, and has a depthwise "
            "kernel for static quantization only"
        )
    return None


def eight_bits(node: Node, spec: QuantizationSpec) -> Reason | None:
    """Decline weights of 4 bits, and scales by groups, for a convolution."""
    if has_four_bits(spec) or group_size(spec) is not None:
        return Reason.unsupported("weights of 4 bits, and weights with a scale for each group, are for linear layers")
    return None


def one_group(node: Node, spec: QuantizationSpec) -> Reason | None:
    """Decline a transposed convolution with groups and a scale for each output channel: the kernel would read the
    scales along the wrong dimension."""
    groups = argument(node, "groups")
    if groups > 1 and spec.qscheme is torch.per_channel_symmetric:
        return Reason.unsupported(
            f"groups={groups}: with a scale for each channel, the transposed kernel takes groups=1"
        )
    return eight_bits(node, spec)


def whole_groups(node: Node, spec: QuantizationSpec) -> Reason | None:
    """Decline 4-bit weights for an odd number of input features, and scales by groups for one that is no multiple of
    the group size."""
    size, shape = group_size(spec), shape_of(argument(node, "weight"))
    if has_four_bits(spec) and shape is not None and shape[1] % 2:
        return Reason.unsupported(f"{shape[1]} input features: the kernel packs weights of 4 bits in pairs")
    if size is None or shape is None or shape[1] % size == 0:
        return None
    return Reason.unsupported(f"{shape[1]} input features are not a multiple of group_size={size}")
