"""Write zero pads in one way, and fold pads that are equal on both sides into the padding of convolutions."""

import torch
from torch.fx import GraphModule, Node

from qspec_core.canonical._record import fold_node, retarget
from qspec_core.graph import argument, called_operator, calls, replace_argument

__all__ = ["canonicalize_pads"]

aten = torch.ops.aten
_CONVOLUTIONS = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}


def canonicalize_pads(module: GraphModule) -> None:
    """Write `constant_pad_nd` as `pad`, and fold zero pads with equal sides into the convolutions that read them.

    A pad with different sides stays an operator: devices treat it differently.

    Cost: O(pads and their readers).
    """
    for node in calls(module.graph, aten.constant_pad_nd.default):
        sides, value = argument(node, "pad"), argument(node, "value")
        retarget(node, aten.pad.default, argument(node, "self"), sides, "constant", value)
    for node in calls(module.graph, aten.pad.default):
        _fold_symmetric(module, node)


def _symmetric_zero_pad(node: Node) -> list[int] | None:
    """Padding of each padded dimension, in order; None for a pad with different sides or of another mode."""
    sides = argument(node, "pad")
    if argument(node, "mode") != "constant" or argument(node, "value") not in (None, 0):
        return None
    if any(not isinstance(side, int) or side < 0 for side in sides) or list(sides[::2]) != list(sides[1::2]):
        return None
    return list(reversed(sides[::2]))


def _fold_symmetric(module: GraphModule, node: Node) -> None:
    padding = _symmetric_zero_pad(node)
    if padding is None:
        return
    for user in list(node.users):
        operator = called_operator(user)
        spatial = _CONVOLUTIONS.get(operator) if operator is not None else None
        if spatial is None or argument(user, "input") is not node or len(padding) > spatial:
            continue
        outer = [0] * (spatial - len(padding)) + padding
        inner = list(argument(user, "padding"))
        inner = inner * spatial if len(inner) == 1 else inner
        replace_argument(user, "input", argument(node, "self"))
        replace_argument(user, "padding", [a + b for a, b in zip(outer, inner, strict=True)])
    if not node.users:
        fold_node(module, node, argument(node, "self"), "folded into the padding of its convolution", same_value=False)
