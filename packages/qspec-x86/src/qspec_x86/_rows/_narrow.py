"""Weight specs for CPUs that may sum products in 16 bits."""

from dataclasses import replace

import torch
from torch.fx import Node

from qspec_core.patterns import argument
from qspec_core.spec import QuantizationSpec

__all__ = ["NARROW", "is_depthwise", "narrow_weight_spec"]

NARROW = (-64, 63)
"""Weights whose products with 0..255 fit 16 bits two at a time: 2 * 255 * 64 = 32640."""


def is_depthwise(node: Node) -> bool:
    """Whether each group of a convolution has one input channel: its kernels sum in 32 bits on every CPU."""
    value = argument(node, "weight").meta["val"]
    return bool(argument(node, "groups") > 1 and value.shape[1] == 1)


def narrow_weight_spec(node: Node, spec: QuantizationSpec) -> QuantizationSpec:
    """The spec with 7 bits; unchanged where it is narrower already, and for depthwise convolutions."""
    if node.target is torch.ops.aten.conv2d.default and is_depthwise(node):
        return spec
    limits = spec.range
    if spec.dtype not in (torch.int8, torch.qint8) or limits is None:
        return spec
    low, high = max(int(limits[0]), NARROW[0]), min(int(limits[1]), NARROW[1])
    return replace(spec, quant_min=low, quant_max=high)
