"""Post-ops of the kernels: clamps, which cost nothing where saturation does them, and two activation functions."""

from math import inf

import torch
from torch.fx import Node

from qspec_core.graph import argument
from qspec_core.patterns import PostOp

__all__ = ["HARDSWISH", "HARDTANH", "RELU", "SILU", "UNARY"]

aten = torch.ops.aten


def _positive(node: Node) -> tuple[float, float]:
    return 0.0, inf


def _limits(node: Node) -> tuple[float, float]:
    return float(argument(node, "min_val")), float(argument(node, "max_val"))


RELU = PostOp(aten.relu.default, kernel="relu", clamp=_positive)
HARDTANH = PostOp(aten.hardtanh.default, kernel="hardtanh", clamp=_limits)
HARDSWISH = PostOp(aten.hardswish.default, kernel="hardswish")
SILU = PostOp(aten.silu.default, kernel="swish")

UNARY = ((RELU,), (HARDTANH,), (HARDSWISH,), (SILU,), ())
"""Chains of one tensor that the two-dimensional convolution kernel has."""
