"""Write einsums and tensordots with a constant as linear."""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qspec_core._torch import OpOverload
from qspec_core.canonical._record import retarget
from qspec_core.graph import add_constant, argument, calls, constant_value, derived_meta, is_call, tensor_value

__all__ = ["canonicalize_einsums"]

aten = torch.ops.aten
_PASS = "canonicalize_einsums"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class _Product:
    """An einsum that is a linear layer.

    Args:
        source: the operand that changes with the input.
        rows: letters of the source that the result has, in the result's order.
        inner: letters summed over.
        columns: letters of the constant that the result has, in the result's order.
        letters: letters of the source, of the constant and of the result.
        weight: the constant.
    """

    source: Node
    rows: str
    inner: str
    columns: str
    letters: tuple[str, str, str]
    weight: Tensor


def canonicalize_einsums(module: GraphModule) -> None:
    """Rewrite an einsum or tensordot of a tensor and a constant as `linear`.

    Each letter of the constant must be summed over, or occur in the constant only. A permute moves the dimensions that
    are summed over to the end; another one gives the result its order.

    Cost: O(einsums), plus a copy of each constant whose dimensions must be permuted.
    """
    for node in calls(module.graph, aten.einsum.default, aten.tensordot.default):
        found = _product(module, node)
        if found is not None:
            _rewrite(module, node, found)


def _product(module: GraphModule, node: Node) -> _Product | None:
    """The linear layer that an einsum computes; None if it computes something else."""
    equation, tensors = _tensordot_equation(node) if is_call(node, aten.tensordot.default) else _equation(node)
    if len(tensors) != 2:
        return None
    constants = [constant_value(module, tensor) for tensor in tensors]
    if [value is None for value in constants].count(True) != 1:
        return None
    place = 0 if constants[0] is not None else 1
    weight, source = constants[place], tensors[1 - place]
    value = tensor_value(source)
    if weight is None or value is None or not isinstance(source, Node) or not weight.is_floating_point():
        return None
    letters = _letters(equation, place, value.dim())
    if letters is None:
        return None
    own, held, kept = letters
    inner = "".join(letter for letter in held if letter in own and letter not in kept)
    columns = "".join(letter for letter in kept if letter in held)
    rows = "".join(letter for letter in kept if letter not in held)
    is_linear = bool(inner) and sorted(rows + inner) == sorted(own) and sorted(inner + columns) == sorted(held)
    return _Product(source, rows, inner, columns, letters, weight) if is_linear else None


def _equation(node: Node) -> tuple[str, list[Any]]:
    return argument(node, "equation"), argument(node, "tensors")


def _tensordot_equation(node: Node) -> tuple[str, list[Any]]:
    """A tensordot as an einsum: its equation and its operands."""
    tensors = [argument(node, name) for name in ("self", "other")]
    left, right = map(tensor_value, tensors)
    if left is None or right is None:
        return "", []
    first, second = left.dim(), right.dim()
    own, other = list(_LETTERS[:first]), list(_LETTERS[first : first + second])
    pairs = [
        (a % first, b % second) for a, b in zip(argument(node, "dims_self"), argument(node, "dims_other"), strict=True)
    ]
    for a, b in pairs:
        other[b] = own[a]
    kept = [letter for dim, letter in enumerate(own) if dim not in {a for a, _ in pairs}]
    kept += [letter for dim, letter in enumerate(other) if dim not in {b for _, b in pairs}]
    return f"{''.join(own)},{''.join(other)}->{''.join(kept)}", tensors


def _letters(equation: str, place: int, rank: int) -> tuple[str, str, str] | None:
    """Letters of the source, the constant and the result, with letters in place of an ellipsis of the source.

    None if the result has no explicit order, or a letter repeats within a term.
    """
    inputs, arrow, kept = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    own, held = terms[1 - place], terms[place]
    if not arrow or "..." in held:
        return None
    unused = [letter for letter in _LETTERS if letter not in equation]
    spelled = "".join(unused[: rank - len(own.replace("...", ""))])
    own, kept = own.replace("...", spelled), kept.replace("...", spelled)
    distinct = all(len(set(term)) == len(term) for term in (own, held, kept))
    return (own, held, kept) if distinct and len(own) == rank and set(kept) <= set(own + held) else None


def _rewrite(module: GraphModule, node: Node, found: _Product) -> None:
    own, held, kept = found.letters

    def call(target: OpOverload, *arguments: object) -> Node:
        made = module.graph.call_function(target, arguments)  # type: ignore[arg-type]  # nodes, numbers and lists
        made.meta = derived_meta(node, _PASS)
        values = [a.meta["val"] if isinstance(a, Node) else a for a in arguments]
        made.meta["val"] = target(*values)
        return made

    order = [held.index(letter) for letter in found.columns + found.inner]
    sizes = [found.weight.shape[index] for index in order]
    features = sizes[: len(found.columns)]
    # the constant -> (columns..., inner...) -> (product of columns, product of inner): out and in features
    matrix = found.weight.detach().permute(order).reshape(prod(features), -1)
    weight = add_constant(module, "_linear_weight", matrix, before=node)
    with module.graph.inserting_before(node):
        x = found.source
        if own != found.rows + found.inner:
            # -> (rows..., inner...)
            x = call(aten.permute.default, x, [own.index(letter) for letter in found.rows + found.inner])
        if len(found.inner) > 1:
            x = call(aten.flatten.using_ints, x, -len(found.inner), -1)  # -> (rows..., in features)
        x = call(aten.linear.default, x, weight)  # -> (rows..., out features)
        if len(found.columns) > 1:
            x = call(aten.unflatten.int, x, -1, features)  # -> (rows..., columns...)
        if not found.columns:
            retarget(node, aten.squeeze.dim, x, -1)
            return
    written = found.rows + found.columns
    retarget(node, aten.permute.default, x, [written.index(letter) for letter in kept])
