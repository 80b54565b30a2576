"""Post-ops: clamps that the delegate fuses into the kernel before them, at no cost."""

import torch

from qspec_core.patterns import PostOp

__all__ = ["HARDTANH", "RELU"]

aten = torch.ops.aten
# The canonical form writes ReLU6 and every clamp between two numbers as hardtanh. The result of a fused clamp is
# quantized over the clamped range. A quantize before the clamp would waste the levels that the clamp cuts off.
HARDTANH = PostOp(aten.hardtanh.default, kernel="hardtanh")
RELU = PostOp(aten.relu.default, kernel="relu")
