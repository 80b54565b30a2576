"""Clamps that a kernel applies before it writes, at no cost where saturation does them."""

import torch
from torch.fx import Node

from qspec_core.patterns import PostOp, argument

__all__ = ["HARDTANH", "RELU"]

aten = torch.ops.aten


def _limits(node: Node) -> list[float]:
    return [float(argument(node, "min_val")), float(argument(node, "max_val"))]


RELU = PostOp(aten.relu.default, kernel="relu")
HARDTANH = PostOp(aten.hardtanh.default, kernel="hardtanh", scalars=_limits)
