"""Rewrites of operators into equal forms that the delegate takes."""

import math

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qspec_core.canonical import canonicalize
from qspec_core.graph import add_constant, argument, is_call, is_float, replace_argument

__all__ = ["numbers_to_tensors", "to_delegate_form"]

aten = torch.ops.aten
_IMAGE_RANK = 4
_SQUEEZES = (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default)
_LARGEST = 3.4028235e15
"""Largest number that becomes a tensor: with a scale for the whole range of float32, all other values would share one
level."""


def to_delegate_form(module: GraphModule) -> None:
    """Bring an owned graph to canonical form, in place, and then to the forms that the delegate takes.

    - A mean over height and width that drops them becomes a mean that keeps them, then a view.
    - `squeeze`, and `unsqueeze` except after the last dimension, become views.
    - `unbind` becomes slices of size 1, then views.
    - ELU gets its alpha as a float: the delegate reads it from the call, and export leaves out the default, integer 1.

    Args:
        module: an exported or converted graph module that the caller owns.
    Cost: O(nodes + edges).
    """
    canonicalize(module)
    for node in list(module.graph.nodes):
        if is_call(node, aten.mean.dim) and _drops_pixels(node):
            _keep_pixels(module, node)
        if is_call(node, *_SQUEEZES):
            _write_as_view(node)
        if is_call(node, aten.unbind.int):
            _write_as_slices(module, node)
        if is_call(node, aten.elu.default):
            scales = {name: argument(node, name) for name in ("scale", "input_scale")}
            node.args = argument(node, "self"), float(argument(node, "alpha"))
            node.kwargs = scales


def numbers_to_tensors(module: GraphModule) -> None:
    """Replace each number that is added to or multiplied with a tensor by a constant tensor, which can be quantized.
    The number is the end of its own range, so it is quantized exactly.

    Args:
        module: an exported graph module in canonical form that the caller owns.
    Cost: O(nodes).
    """
    for node in list(module.graph.nodes):
        if not is_call(node, aten.add.Tensor, aten.mul.Tensor):
            continue
        source, number = argument(node, "self"), argument(node, "other")
        if not is_float(source) or isinstance(number, bool) or not isinstance(number, int | float):
            continue
        value: Tensor = source.meta["val"]
        if value.dtype is torch.float32 and value.dim() > 0 and math.fabs(number) <= _LARGEST:
            replace_argument(node, "other", add_constant(module, "number", torch.tensor([float(number)]), node))


def _write_as_view(node: Node) -> None:
    source, value = argument(node, "self"), node.meta.get("val")
    before = source.meta.get("val")
    if not isinstance(value, Tensor) or not isinstance(before, Tensor):
        return
    is_known = all(isinstance(size, int) for size in value.shape)
    is_trailing = node.target is aten.unsqueeze.default and argument(node, "dim") in (-1, before.dim())
    if is_known and not is_trailing and value.is_floating_point():
        node.target, node.args, node.kwargs = aten.view.default, (source, list(value.shape)), {}


def _write_as_slices(module: GraphModule, unbind: Node) -> None:
    source = argument(unbind, "self")
    whole = source.meta.get("val")
    if not is_float(source) or not all(isinstance(size, int) for size in whole.shape):
        return
    dim = argument(unbind, "dim") % whole.dim()
    for item in list(unbind.users):
        index = item.args[1] % whole.shape[dim]  # every reader takes one item: export writes nothing else
        # (..., size, ...) -> (..., 1, ...) -> (..., ...)
        with module.graph.inserting_before(item):
            part = module.graph.call_function(aten.slice.Tensor, (source, dim, index, index + 1))
        part.meta = {**item.meta, "val": whole.narrow(dim, index, 1)}
        item.target, item.args = aten.squeeze.dim, (part, dim)
        _write_as_view(item)
    module.graph.erase_node(unbind)


def _drops_pixels(node: Node) -> bool:
    source, dims = argument(node, "self"), argument(node, "dim")
    value, result = source.meta.get("val"), node.meta.get("val")
    if not isinstance(value, Tensor) or not isinstance(result, Tensor) or value.dim() != _IMAGE_RANK or not dims:
        return False
    is_known = all(isinstance(size, int) for size in result.shape)
    return is_known and not argument(node, "keepdim") and sorted(dim % _IMAGE_RANK for dim in dims) == [2, 3]


def _keep_pixels(module: GraphModule, mean: Node) -> None:
    value: Tensor = mean.meta["val"]
    # mean: (n, c, h, w) -> (n, c, 1, 1); view: -> (n, c)
    with module.graph.inserting_after(mean):
        flat = module.graph.call_function(aten.view.default, (mean, list(value.shape)))
    flat.meta = dict(mean.meta)
    mean.replace_all_uses_with(flat, delete_user_cb=lambda user: user is not flat)
    if len(mean.args) > 2:
        replace_argument(mean, "keepdim", True)
    else:
        mean.kwargs = {**mean.kwargs, "keepdim": True}
    mean.meta = {**mean.meta, "val": value[..., None, None]}
