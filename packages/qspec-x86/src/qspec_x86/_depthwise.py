"""Depthwise convolutions: their kernels sum in 32 bits on every CPU, so their weights can use all 8 bits."""

import torch
from torch.fx import Node

from qspec_core.graph import argument, is_call, require_tensor_value

__all__ = ["is_depthwise"]

aten = torch.ops.aten


def is_depthwise(node: Node) -> bool:
    """Whether a node is a 1d or 2d convolution with several groups of one input channel each.

    A 3d one does not count: its kernel on CPUs with AVX-512 and without VNNI sums in 16 bits (0.52 of the exact sum was
    measured).
    """
    if not is_call(node, aten.conv1d.default, aten.conv2d.default):
        return False
    weight = require_tensor_value(argument(node, "weight"))
    return bool(argument(node, "groups") > 1 and weight.shape[1] == 1)
