"""Write concatenations as cat, parts of a split tensor as slices, and transposes as transpose or permute."""

import operator
from itertools import accumulate
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qspec_core._torch import OpOverload
from qspec_core.canonical._record import fold_node, retarget
from qspec_core.graph import argument, calls, derived_meta, is_call, is_float, tensor_value

__all__ = ["canonicalize_shapes"]

aten = torch.ops.aten
_PASS = "canonicalize_shapes"
_CONCATENATIONS = (aten.concat.default, aten.concatenate.default)
_STACKS = (
    *(aten.stack.default, aten.hstack.default, aten.vstack.default, aten.row_stack.default),
    *(aten.dstack.default, aten.column_stack.default),
)
_SPLITS: dict[OpOverload, int | None] = {
    **dict.fromkeys((aten.chunk.default, aten.unsafe_chunk.default, aten.split.Tensor, aten.split.sizes)),
    **dict.fromkeys((aten.unsafe_split.Tensor, aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default)),
    **dict.fromkeys((aten.tensor_split.sections, aten.tensor_split.indices)),
    **dict.fromkeys((aten.vsplit.int, aten.vsplit.array), 0),
    **dict.fromkeys((aten.hsplit.int, aten.hsplit.array), 1),
    **dict.fromkeys((aten.dsplit.int, aten.dsplit.array), 2),
}
"""The dimension that each of them splits; None for those that have an argument for it."""
_LAST_TWO = (aten.mT.default, aten.mT.a, aten.mH.default, aten.mH.a, aten.adjoint.default)
_REVERSED = (*(aten.t.default, aten.numpy_T.default, aten.numpy_T.a, aten.matrix_H.default, aten.matrix_H.a),)
_SWAPS = (aten.swapaxes.default, aten.swapdims.default)
_MOVES = (aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int, aten.moveaxis.intlist)


def canonicalize_shapes(module: GraphModule) -> None:
    """Rewrite the operators that join, split and transpose floating-point tensors.

    - concat and concatenate become cat; stack, hstack, vstack, dstack and column_stack become unsqueezes and a cat.
    - chunk, split, tensor_split and the like become one slice for each part that is read; so does narrow.
    - mT, mH, adjoint, t, T, swapaxes become transpose; movedim becomes permute.

    A split or narrow stays if a size or a bound along its dimension is symbolic.

    Cost: O(nodes found + their readers).
    """
    for node in calls(module.graph, *_CONCATENATIONS):
        if is_float(node):
            retarget(node, aten.cat.default, argument(node, "tensors"), argument(node, "dim"))
    for node in calls(module.graph, *_STACKS):
        if is_float(node):
            _write_as_cat(module, node)
    for node in calls(module.graph, *_SPLITS):
        _write_as_slices(module, node)
    for node in calls(module.graph, aten.narrow.default):
        _write_as_slice(node)
    for node in calls(module.graph, *_LAST_TWO, *_REVERSED, *_SWAPS, *_MOVES):
        if is_float(node):
            _write_as_transpose(node)


def _write_as_cat(module: GraphModule, node: Node) -> None:
    """Add the dimensions that the operator adds to each tensor, then concatenate."""
    tensors = list(argument(node, "tensors"))
    ranks = [value.dim() for value in map(tensor_value, tensors) if value is not None]
    if len(ranks) != len(tensors) or (0 in ranks and not is_call(node, aten.stack.default)):
        return
    added = [_added_dimensions(node, rank) for rank in ranks]
    dim = _joined_dimension(node, ranks[0])
    joined = [_unsqueeze(module, tensor, dims, node) for tensor, dims in zip(tensors, added, strict=True)]
    retarget(node, aten.cat.default, joined, dim)


def _added_dimensions(node: Node, rank: int) -> tuple[int, ...]:
    """Where a tensor of this rank gets dimensions of size 1, in the order in which they are added."""
    if is_call(node, aten.stack.default):
        return (argument(node, "dim") % (rank + 1),)
    if is_call(node, aten.dstack.default):  # (n,) -> (1, n, 1) and (m, n) -> (m, n, 1)
        return {1: (0, 2), 2: (2,)}.get(rank, ())
    if is_call(node, aten.hstack.default) or rank > 1:
        return ()
    return (1,) if is_call(node, aten.column_stack.default) else (0,)  # (n,) -> (n, 1), or (1, n) in vstack


def _joined_dimension(node: Node, rank: int) -> int:
    if is_call(node, aten.stack.default):
        return int(argument(node, "dim") % (rank + 1))
    if is_call(node, aten.dstack.default):
        return 2
    if is_call(node, aten.hstack.default):
        return 0 if rank == 1 else 1
    return 1 if is_call(node, aten.column_stack.default) else 0


def _unsqueeze(module: GraphModule, tensor: Node, dims: tuple[int, ...], reader: Node) -> Node:
    for dim in dims:
        with module.graph.inserting_before(reader):
            made = module.graph.call_function(aten.unsqueeze.default, (tensor, dim))
        made.meta = derived_meta(tensor, _PASS, reader)
        made.meta |= {key: reader.meta[key] for key in ("nn_module_stack", "stack_trace") if key in reader.meta}
        value = tensor_value(tensor)
        if value is not None:
            made.meta["val"] = value.unsqueeze(dim)
        tensor = made
    return tensor


def _write_as_slices(module: GraphModule, node: Node) -> None:
    """Turn each item of a split into a slice; lengths are read from the fake tensors of the parts."""
    source, parts = argument(node, "self"), node.meta.get("val")
    value = tensor_value(source)
    items = list(node.users)
    if value is None or not value.is_floating_point() or not isinstance(parts, list | tuple):
        return
    if not all(item.op == "call_function" and item.target is operator.getitem for item in items):
        return
    dim = _split_dimension(node, value.dim())
    lengths = [part.shape[dim] for part in parts]
    whole = value.shape[dim]
    if not all(isinstance(size, int) for size in (whole, *lengths)) or sum(lengths) != whole:
        return
    ends = list(accumulate(lengths))
    for item in items:
        index: Any = item.args[1]
        end, length = ends[index], lengths[index]
        retarget(item, aten.slice.Tensor, source, dim, end - length, end)
    fold_node(module, node, source, "written as slices", same_value=False)


def _split_dimension(node: Node, rank: int) -> int:
    dim = _SPLITS[node.target]  # type: ignore[index]  # calls() found it by them
    if dim is None:
        return int(argument(node, "dim") % rank)
    return 0 if rank == 1 else dim  # hsplit of a vector


def _write_as_slice(node: Node) -> None:
    source, start, length = (argument(node, name) for name in ("self", "start", "length"))
    value = tensor_value(source)
    if value is None or not value.is_floating_point():
        return
    dim = argument(node, "dim") % value.dim()
    size = value.shape[dim]
    if isinstance(start, int) and isinstance(length, int) and isinstance(size, int):
        start += size if start < 0 else 0
        retarget(node, aten.slice.Tensor, source, dim, start, start + length)


def _write_as_transpose(node: Node) -> None:
    source = argument(node, "self")
    value = tensor_value(source)
    if value is None or value.dim() < 2:  # transposed, a vector is the vector itself
        return
    rank = value.dim()
    if is_call(node, *_LAST_TWO):
        retarget(node, aten.transpose.int, source, rank - 2, rank - 1)
    elif is_call(node, *_SWAPS):
        names = ("axis0", "axis1") if is_call(node, aten.swapaxes.default) else ("dim0", "dim1")
        retarget(node, aten.transpose.int, source, *(argument(node, name) for name in names))
    elif is_call(node, *_REVERSED) and rank == 2:
        retarget(node, aten.transpose.int, source, 0, 1)
    elif is_call(node, *_REVERSED):
        retarget(node, aten.permute.default, source, list(reversed(range(rank))))
    else:
        retarget(node, aten.permute.default, source, _moved(node, rank))


def _moved(node: Node, rank: int) -> list[int]:
    """The order of dimensions that movedim gives: each source goes to its destination, the others keep their order."""
    sources, destinations = argument(node, "source"), argument(node, "destination")
    pairs = zip(*((item,) if isinstance(item, int) else item for item in (sources, destinations)), strict=True)
    moved = {destination % rank: source % rank for source, destination in pairs}
    rest = iter(dim for dim in range(rank) if dim not in moved.values())
    return [moved[dim] if dim in moved else next(rest) for dim in range(rank)]
