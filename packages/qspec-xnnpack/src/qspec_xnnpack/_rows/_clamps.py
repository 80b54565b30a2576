"""Clamps that the delegate fuses into the kernel before them, where they cost nothing."""

import torch

from qspec_core.patterns import PostOp

__all__ = ["HARDTANH", "RELU"]

aten = torch.ops.aten
# The canonical form writes ReLU6 and every clamp between two numbers as hardtanh. Fused, the result is quantized
# over the clamped range: a clamp on its own, behind a quantize of the unclamped range, wastes most of the levels.
HARDTANH = PostOp(aten.hardtanh.default, kernel="hardtanh")
RELU = PostOp(aten.relu.default, kernel="relu")
