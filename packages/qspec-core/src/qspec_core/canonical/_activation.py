"""Write all clamps as relu, hardtanh or, with one bound, clamp."""

import torch
from torch.fx import GraphModule, Node

from qspec_core.canonical._record import retarget
from qspec_core.graph import argument, calls, is_call, is_float

__all__ = ["canonicalize_activations"]

aten = torch.ops.aten
_HARDTANHS = (aten.relu6.default, aten.hardtanh.default)
_CLAMPS = (aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default)


def _bounds(node: Node) -> tuple[object, object]:
    """Lower and upper bound of one of these operators; None for a bound that it does not have."""
    if is_call(node, aten.relu6.default):
        return 0.0, 6.0
    if is_call(node, aten.clamp.default):
        return argument(node, "min"), argument(node, "max")
    if is_call(node, aten.clamp_min.default):
        return argument(node, "min"), None
    if is_call(node, aten.clamp_max.default):
        return None, argument(node, "max")
    return argument(node, "min_val"), argument(node, "max_val")


def canonicalize_activations(module: GraphModule) -> None:
    """Write relu6 and clamps as `hardtanh(x, low, high)`.

    A clamp with the lower bound 0 only becomes `relu(x)`, one with another single bound `clamp(x, low, high)`.
    A clamp of integers, or with tensors or symbols as bounds, stays.

    Cost: O(clamps).
    """
    for node in calls(module.graph, *_HARDTANHS, *_CLAMPS):
        low, high = _bounds(node)
        if not is_float(argument(node, "self")):
            continue
        if not isinstance(low, int | float | None) or not isinstance(high, int | float | None):
            continue
        source = argument(node, "self")
        if low == 0 and (high is None or high == float("inf")):
            retarget(node, aten.relu.default, source)
        elif low is None or high is None:
            retarget(node, aten.clamp.default, source, low, high)
        else:
            retarget(node, aten.hardtanh.default, source, float(low), float(high))
