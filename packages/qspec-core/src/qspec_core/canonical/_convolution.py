"""Write all convolutions as conv1d, conv2d, conv3d or conv_transpose with numeric padding."""

import torch
from torch.fx import GraphModule, Node

from qspec_core._torch import OpOverload
from qspec_core.canonical._record import retarget
from qspec_core.graph import argument, calls, expand_integers, is_float, require_tensor_value, tensor_value

__all__ = ["canonicalize_convolutions"]

aten = torch.ops.aten
_FORWARD: dict[int, OpOverload] = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
_TRANSPOSED: dict[int, OpOverload] = {
    1: aten.conv_transpose1d.default,
    2: aten.conv_transpose2d.input,
    3: aten.conv_transpose3d.input,
}
_NAMED_PADDING: dict[OpOverload, int] = {aten.conv1d.padding: 1, aten.conv2d.padding: 2, aten.conv3d.padding: 3}


def canonicalize_convolutions(module: GraphModule) -> None:
    """Rewrite `aten.convolution` (decomposed graphs) and the overloads whose padding is a string.

    Cost: O(convolutions).
    """
    for node in calls(module.graph, aten.convolution.default):
        _undo_decomposition(node)
    for node in calls(module.graph, *_NAMED_PADDING):
        _write_padding_as_numbers(module, node)


def _spatial(node: Node) -> int | None:
    """Number of spatial dimensions, from the weight's rank."""
    value = tensor_value(argument(node, "weight"))
    return None if value is None else value.dim() - 2


def _undo_decomposition(node: Node) -> None:
    spatial = _spatial(node)
    if spatial not in _FORWARD or not is_float(node):
        return
    names = ["input", "weight", "bias", "stride", "padding"]
    if argument(node, "transposed"):
        target, names = _TRANSPOSED[spatial], [*names, "output_padding", "groups", "dilation"]
    else:
        target, names = _FORWARD[spatial], [*names, "dilation", "groups"]
    retarget(node, target, *(argument(node, name) for name in names))


def _write_padding_as_numbers(module: GraphModule, node: Node) -> None:
    """Write a string padding as numbers: `valid` as 0, `same` as `dilation * (kernel - 1)` over both sides.

    If that is odd, a pad operator before the convolution adds one more at the end.
    """
    spatial = _NAMED_PADDING[node.target]  # type: ignore[index]  # calls() found it by them
    weight = argument(node, "weight")
    kernel = tuple(require_tensor_value(weight).shape[2:])
    dilation = expand_integers(argument(node, "dilation"), spatial)
    padding, extra = [0] * spatial, [0] * spatial
    if argument(node, "padding") == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding, extra = [total // 2 for total in totals], [total % 2 for total in totals]
    source = argument(node, "input")
    if any(extra):
        sides = [side for p, e in zip(reversed(padding), reversed(extra), strict=True) for side in (p, p + e)]
        with module.graph.inserting_before(node):
            padded = module.graph.call_function(aten.pad.default, (source, sides, "constant", 0.0))
        value = require_tensor_value(source)
        grown = [n + 2 * p + e for n, p, e in zip(value.shape[-spatial:], padding, extra, strict=True)]
        padded.meta = dict(node.meta) | {"val": value.new_empty([*value.shape[:-spatial], *grown])}
        source, padding = padded, [0] * spatial
    rest = (argument(node, "stride"), padding, argument(node, "dilation"), argument(node, "groups"))
    retarget(node, _FORWARD[spatial], source, weight, argument(node, "bias"), *rest)
