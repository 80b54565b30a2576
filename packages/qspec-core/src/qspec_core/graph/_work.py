"""The amount of arithmetic of an operator: its multiply-adds, by the shapes of its operands."""

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType

import torch
from torch.fx import Node

from qspec_core._torch import OpOverload, size_hint
from qspec_core.graph._arguments import argument, called_operator
from qspec_core.graph._layers import CONVOLUTIONS, LINEARS, RECURRENT, RECURRENT_CELLS, TRANSPOSED
from qspec_core.graph._values import tensor_value

__all__ = ["STEPS_KEY", "multiply_adds"]

_aten = torch.ops.aten
STEPS_KEY = "qspec_steps"
"""Key in the metadata of a node in the body of a loop: how often it runs in one call."""


class _UnknownError(Exception):
    """A size is not known."""


def _shape(node: object) -> tuple[int, ...]:
    """Shape of a node's value. Symbolic sizes have the size of the example inputs."""
    value = tensor_value(node)
    sizes = [None] if value is None else [size_hint(size) for size in value.shape]
    known = tuple(size for size in sizes if size is not None)
    if len(known) != len(sizes):
        raise _UnknownError
    return known


def _result(node: Node) -> int:
    return prod(_shape(node))


def _linear(node: Node) -> int:
    return _result(node) * _shape(argument(node, "weight"))[-1]


def _convolution(node: Node) -> int:
    return _result(node) * prod(_shape(argument(node, "weight"))[1:])


def _transposed(node: Node) -> int:
    """Each element of the input is multiplied with the weights (out / groups, kernel...) of its channel."""
    return prod(_shape(argument(node, "input"))) * prod(_shape(argument(node, "weight"))[1:])


def _any_convolution(node: Node) -> int:
    return _transposed(node) if argument(node, "transposed") else _convolution(node)


def _product(node: Node, first: str = "self") -> int:
    return _result(node) * _shape(argument(node, first))[-1]


def _product_with_addend(node: Node) -> int:
    return _product(node, "mat1")


def _product_of_batches_with_addend(node: Node) -> int:
    return _product(node, "batch1")


def _attention(node: Node) -> int:
    """Query (..., L, E) times key (..., S, E), then the probabilities times value (..., S, V)."""
    query, value = _shape(argument(node, "query")), _shape(argument(node, "value"))
    return prod(query[:-1]) * value[-2] * (query[-1] + value[-1])


def _matrices(nodes: object) -> int:
    shapes = [_shape(node) for node in nodes] if isinstance(nodes, list | tuple) else []
    return sum(prod(shape) for shape in shapes if len(shape) == 2)


def _recurrent(node: Node) -> int:
    """Every step of every sequence multiplies with all matrices once."""
    return prod(_shape(argument(node, "input"))[:-1]) * _matrices(argument(node, "params"))


def _recurrent_cell(node: Node) -> int:
    return prod(_shape(argument(node, "input"))[:-1]) * _matrices([argument(node, name) for name in ("w_ih", "w_hh")])


_COUNTS: Mapping[OpOverload, Callable[[Node], int]] = MappingProxyType(
    {
        **dict.fromkeys(LINEARS, _linear),
        **dict.fromkeys(CONVOLUTIONS, _convolution),
        **dict.fromkeys(TRANSPOSED, _transposed),
        _aten.convolution.default: _any_convolution,
        **dict.fromkeys((_aten.mm.default, _aten.bmm.default, _aten.matmul.default), _product),
        _aten.addmm.default: _product_with_addend,
        _aten.baddbmm.default: _product_of_batches_with_addend,
        _aten.scaled_dot_product_attention.default: _attention,
        **dict.fromkeys(RECURRENT, _recurrent),
        **dict.fromkeys(RECURRENT_CELLS, _recurrent_cell),
    }
)


def _steps(node: Node) -> int:
    steps = node.meta.get(STEPS_KEY, 1)
    return steps if isinstance(steps, int) else size_hint(steps) or 1


def multiply_adds(node: Node) -> int:
    """Multiply-adds of one call of a layer, a matrix product, attention or a recurrent layer.

    0 for other operators, and where a size is not known. Symbolic sizes count as in the example inputs. Padding is not
    subtracted.
    """
    called = called_operator(node)
    count = _COUNTS.get(called) if called is not None else None
    try:
        return 0 if count is None else count(node) * _steps(node)
    except _UnknownError:
        return 0
