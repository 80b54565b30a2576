"""Matrix products with a constant become linear."""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qspec_core.canonical._record import retarget
from qspec_core.graphs import add_constant, constant_value
from qspec_core.patterns import argument, is_call

__all__ = ["canonicalize_linears"]

aten = torch.ops.aten
_TRANSPOSES = (aten.t.default, aten.numpy_T.default, aten.mT.default)


def _constant_matrix(module: GraphModule, node: object) -> Tensor | None:
    """A constant matrix, or a constant matrix transposed in the graph, as a view; None for everything else."""
    if is_call(node, *_TRANSPOSES):
        inner = _constant_matrix(module, argument(node, "self"))
        return None if inner is None else inner.t()
    if is_call(node, aten.permute.default) and argument(node, "dims") == [1, 0]:
        inner = _constant_matrix(module, argument(node, "self"))
        return None if inner is None else inner.t()
    if is_call(node, aten.transpose.int) and {argument(node, "dim0"), argument(node, "dim1")} in ({0, 1}, {-2, -1}):
        inner = _constant_matrix(module, argument(node, "self"))
        return None if inner is None else inner.t()
    value = constant_value(module, node)
    return value if value is not None and value.dim() == 2 and value.is_floating_point() else None


def _operands(node: Node) -> tuple[Node, Node, Node | None] | None:
    """`(input, matrix, bias)` of a product in which `matrix` is (in, out); None for another operator or scaling."""
    if is_call(node, aten.addmm.default) and argument(node, "beta") == 1 and argument(node, "alpha") == 1:
        return argument(node, "mat1"), argument(node, "mat2"), argument(node, "self")
    if is_call(node, aten.mm.default):
        return argument(node, "self"), argument(node, "mat2"), None
    if is_call(node, aten.matmul.default):
        return argument(node, "self"), argument(node, "other"), None
    return None


def canonicalize_linears(module: GraphModule) -> None:
    """Rewrite addmm, mm and matmul with a constant matrix as `linear` over its transpose, and `linear` over a matrix
    that the graph transposes as `linear` over the view. No weight is copied.

    Cost: O(nodes).
    """
    for node in list(module.graph.nodes):
        if is_call(node, aten.linear.default):
            _take_transposed_weight(module, node)
            continue
        found = _operands(node)
        if found is None:
            continue
        source, matrix, bias = found
        value = _constant_matrix(module, matrix)
        if value is None or not _is_bias(module, bias) or constant_value(module, source) is not None:
            continue
        weight = add_constant(module, "_linear_weight", value.detach().t(), before=node)
        retarget(node, aten.linear.default, source, weight, bias)


def _is_bias(module: GraphModule, bias: Node | None) -> bool:
    if bias is None:
        return True
    value = constant_value(module, bias)
    return value is not None and value.dim() == 1


def _take_transposed_weight(module: GraphModule, node: Node) -> None:
    matrix = argument(node, "weight")
    if constant_value(module, matrix) is not None:
        return
    value = _constant_matrix(module, matrix)
    if value is not None:
        weight = add_constant(module, "_linear_weight", value.detach(), before=node)
        node.replace_input_with(matrix, weight)
