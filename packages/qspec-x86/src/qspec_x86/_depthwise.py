"""Which convolutions are depthwise: their kernels sum in 32 bits on every CPU, so their weights may use all 8 bits."""

import torch
from torch.fx import Node

from qspec_core.patterns import argument

__all__ = ["is_depthwise"]


def is_depthwise(node: Node) -> bool:
    """Whether a node is a convolution each of whose groups, more than one, has one input channel."""
    if node.target is not torch.ops.aten.conv2d.default:
        return False
    weight = argument(node, "weight").meta["val"]
    return bool(argument(node, "groups") > 1 and weight.shape[1] == 1)
