"""Write matrix products with a constant as linear."""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qspec_core import ops
from qspec_core.canonical._record import fold_node, retarget
from qspec_core.graph import (
    add_constant,
    argument,
    argument_names,
    calls,
    constant_value,
    derived_meta,
    is_call,
    replace_argument,
    tensor_value,
)

__all__ = ["MATRIX_VIEWS", "canonicalize_linears"]

aten = torch.ops.aten
MATRIX_VIEWS = (
    *(aten.t.default, aten.numpy_T.default, aten.mT.default, aten.transpose.int, aten.permute.default),
    *(aten.view.default, aten.expand.default, aten.unsqueeze.default, aten.detach.default, aten.alias.default),
)
"""Operators that return a view of their input and never copy it: the strides of the result show what they did."""
_RESHAPES = (aten.view.default, aten._unsafe_view.default)
_PRODUCTS = (aten.addmm.default, aten.mm.default, aten.bmm.default, aten.matmul.default)
_PASS = "canonicalize_linears"


def _viewed_matrix(module: GraphModule, node: object) -> tuple[Node, bool] | None:
    """The matrix that a node is a view of, and whether the view is its transpose; None if there is none.

    The matrix is a float constant or is dequantized. The view may repeat it along a first dimension, as a batch.
    """
    root = node
    while is_call(root, *MATRIX_VIEWS):
        root = argument(root, "self")
    if not isinstance(root, Node) or not (ops.is_dequantize(root) or constant_value(module, root) is not None):
        return None
    held, laid = tensor_value(root), tensor_value(node)
    if held is None or laid is None or not held.is_floating_point():
        return None
    is_repeated = laid.dim() == 3 and (laid.stride(0) == 0 or laid.shape[0] == 1)
    if held.dim() != 2 or not (laid.dim() == 2 or is_repeated):
        return None
    shape, strides = tuple(laid.shape[-2:]), laid.stride()[-2:]
    if (shape, strides) == (tuple(held.shape), held.stride()):
        return root, False
    return (root, True) if (shape, strides) == (tuple(held.shape[::-1]), held.stride()[::-1]) else None


def _weight(module: GraphModule, node: object, reader: Node, *, transposed: bool) -> Node | None:
    """Node of the matrix that `node` is a view of, or of its transpose, without a copy; None if there is none."""
    found = _viewed_matrix(module, node)
    if found is None:
        return None
    root, is_transpose = found
    if is_transpose == transposed:
        return root
    value = constant_value(module, root)
    return None if value is None else add_constant(module, "_linear_weight", value.detach().t(), before=reader)


def _operands(node: Node) -> tuple[Node, Node, Node | None] | None:
    """`(input, matrix, bias)` of a product in which `matrix` is (in, out); None for another operator or scaling."""
    if is_call(node, aten.addmm.default) and argument(node, "beta") == 1 and argument(node, "alpha") == 1:
        return argument(node, "mat1"), argument(node, "mat2"), argument(node, "self")
    if is_call(node, aten.mm.default, aten.bmm.default):
        return argument(node, "self"), argument(node, "mat2"), None
    if is_call(node, aten.matmul.default):
        return argument(node, "self"), argument(node, "other"), None
    return None


def canonicalize_linears(module: GraphModule) -> None:
    """Rewrite addmm, mm, bmm and matmul with a constant or dequantized matrix as `linear` with the transposed matrix.

    If the matrix is the first operand, the `linear` runs between two transposes. A `linear` whose weight the graph
    transposes gets a transposed constant instead. No weight is copied.

    Cost: O(layers and products).
    """
    for node in calls(module.graph, aten.linear.default, *_PRODUCTS):
        if is_call(node, aten.linear.default):
            _take_transposed_weight(module, node)
            continue
        found = _operands(node)
        if found is None or _rewrite_matrix_first(module, node):
            continue
        source, matrix, bias = found
        if not _is_bias(module, bias) or constant_value(module, source) is not None or _is_vector(matrix):
            continue
        weight = _weight(module, matrix, node, transposed=True)
        if weight is not None and _keeps_rank(source, matrix):
            retarget(node, aten.linear.default, source, weight, bias)
            _remove_flattening(module, node)


def _remove_flattening(module: GraphModule, node: Node) -> None:
    """Remove the views that decomposed graphs write around a `linear`.

    They are (..., in) -> (rows, in) before it and (rows, out) -> (..., out) after it.
    """
    rows, after = argument(node, "input"), next(iter(node.users), None)
    if not is_call(rows, aten.view.default) or not is_call(after, *_RESHAPES) or len(node.users) != 1:
        return
    source = argument(rows, "self")
    before, flat, shaped = tensor_value(source), tensor_value(rows), tensor_value(after)
    if before is None or flat is None or shaped is None or flat.dim() != 2 or before.dim() < 2:
        return
    outer = [
        list(map(str, value.shape[:-1])) for value in (before, shaped)
    ]  # as strings: comparing symbols would add guards
    if str(before.shape[-1]) != str(flat.shape[-1]) or outer[0] != outer[1]:
        return
    replace_argument(node, "input", source)
    node.meta["val"] = shaped
    fold_node(module, after, node, "linear takes its input without this view")


def _is_vector(matrix: Node) -> bool:
    value = tensor_value(matrix)
    return value is None or value.dim() < 2


def _keeps_rank(source: Node, matrix: Node) -> bool:
    """Whether `linear` gives the shape of the product: a matrix that is repeated needs an input with that batch."""
    value, other = tensor_value(source), tensor_value(matrix)
    if value is None or other is None:
        return False
    if other.dim() == 2:
        return True
    if value.dim() < 3:
        return False
    return str(other.shape[0]) in ("1", str(value.shape[-3]))  # as strings, as above


def _rewrite_matrix_first(module: GraphModule, node: Node) -> bool:
    """Rewrite `matrix @ x` with a constant matrix as `linear(x.mT, matrix).mT`; False for any other node."""
    if not is_call(node, aten.matmul.default, aten.mm.default):
        return False
    matrix, other = (argument(node, name) for name in argument_names(node.target)[:2])  # type: ignore[arg-type]  # a call
    source, first = tensor_value(other), tensor_value(matrix)
    if source is None or first is None or first.dim() != 2 or constant_value(module, other) is not None:
        return False
    weight = _weight(module, matrix, node, transposed=False)
    if weight is None:
        return False
    if source.dim() == 1:
        retarget(node, aten.linear.default, other, weight)
        return True
    with module.graph.inserting_before(node):
        rows = argument(other, "self") if _swaps_last(other, source.dim()) else _transposed(module, other, source, node)
        product = module.graph.call_function(aten.linear.default, (rows, weight))
    product.meta = derived_meta(node, _PASS)
    value = tensor_value(node)
    if value is not None:
        product.meta["val"] = value.mT
    retarget(node, aten.transpose.int, product, -2, -1)
    return True


def _swaps_last(node: Node, rank: int) -> bool:
    if not is_call(node, aten.transpose.int):
        return is_call(node, aten.mT.default)
    return {argument(node, name) % rank for name in ("dim0", "dim1")} == {rank - 2, rank - 1}


def _transposed(module: GraphModule, source: Node, value: Tensor, reader: Node) -> Node:
    made = module.graph.call_function(aten.transpose.int, (source, -2, -1))
    made.meta = derived_meta(source, _PASS, reader)
    made.meta["val"] = value.mT
    return made


def _is_bias(module: GraphModule, bias: Node | None) -> bool:
    if bias is None:
        return True
    value = constant_value(module, bias)
    return value is not None and value.dim() == 1


def _take_transposed_weight(module: GraphModule, node: Node) -> None:
    matrix = argument(node, "weight")
    if not is_call(matrix, *MATRIX_VIEWS):
        return
    weight = _weight(module, matrix, node, transposed=False)
    if weight is not None:
        node.replace_input_with(matrix, weight)
