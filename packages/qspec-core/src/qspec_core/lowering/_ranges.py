"""Dynamic ranges of activations, in plain operators."""

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qspec_core import ops
from qspec_core.graph import argument, is_call

__all__ = ["write_ranges"]

aten = torch.ops.aten
_EPS = torch.finfo(torch.float32).eps
"""Smallest scale of a row in `choose_qparams_per_token_asymmetric`."""
_SMALLEST = 1e-5
"""Lower bound on the largest magnitude of a row in `choose_qparams_per_token`."""


def write_ranges(module: GraphModule, *, stores_rows: bool) -> None:
    """Replace each `choose_qparams` of a graph, for a tensor or for each row, by plain operators, in place.

    Inductor's own decomposition of the one for a tensor does not widen a range to contain 0: inputs in 5..6 would all
    become one value. The eager form raises on an empty tensor. A zero added to the minima and maxima of the rows solves
    both. Those for each row have no decomposition.

    Args:
        module: a lowered graph.
        stores_rows: keep Inductor from computing the parameters of a row again for each of its elements.
    Cost: O(nodes); in a run, O(elements), as before.
    """
    for chooser, parameters_of in _WRITERS.items():
        for node in module.graph.find_nodes(op="call_function", target=chooser):
            parameters = parameters_of(_Writer(module, node, stores_rows), node)
            for reader in list(node.users):
                if reader.target is operator.getitem:
                    _read_instead(reader, parameters[reader.args[1]])
                    module.graph.erase_node(reader)
    module.graph.eliminate_dead_code()


def _read_instead(parameter: Node, written: Node) -> None:
    """Let the readers of a scale or zero point read the written one; those that convert it to float, without a detour
    through integers."""
    number = written.args[0] if is_call(written, aten.to.dtype) else written
    for reader in list(parameter.users):
        if is_call(reader, aten.to.dtype) and reader.args[1] is torch.float32 and isinstance(number, Node):
            reader.replace_all_uses_with(number)
    parameter.replace_all_uses_with(written)


class _Writer:
    """Calls of operators before a node."""

    def __init__(self, module: GraphModule, node: Node, stores_rows: bool) -> None:
        self._graph, self._node, self._stores_rows = module.graph, node, stores_rows

    def __call__(self, target: Any, *arguments: Any) -> Node:  # an operator, and arguments of any type
        with self._graph.inserting_before(self._node):
            return self._graph.call_function(target, arguments)

    def stored(self, parameter: Node) -> Node:
        """The same parameters of rows, (..., 1), which Inductor keeps.

        They are the maxima of 16 copies each. Inductor stores the results of reductions, and computes all others again
        for each element of a row: on an x86 CPU, linear layers of 768 by 768, 768 by 3072 (gelu) and back took 4.6 ms
        for 128 rows, not 4.9, and as long as with one range (4.5 ms)."""
        if not self._stores_rows:
            return parameter
        copies = self(aten.mul.Tensor, parameter, self(aten.ones.default, [16]))
        return self(aten.amax.default, copies, [-1], True)


def _of_tensor(call: _Writer, node: Node) -> tuple[Node, Node]:
    """Scale, float32 (1,), and zero point, int64 (1,)."""
    low, high, eps = (argument(node, name) for name in ("quant_min", "quant_max", "eps"))
    least, most = (
        call(reduce, _with_zero(call, call(reduce, argument(node, "input"), [-1])), [0], True)
        for reduce in (aten.amin.default, aten.amax.default)
    )
    scale, zero_point = _affine(call, (least, most), (low, high), eps)
    return scale, call(aten.to.dtype, zero_point, torch.int64)


def _of_rows(call: _Writer, node: Node) -> tuple[Node, Node]:
    """Scale, float32 (..., 1), and zero point, int64 (..., 1)."""
    least = call(aten.clamp_max.default, call(aten.amin.default, argument(node, "input"), [-1], True), 0.0)
    most = call(aten.clamp_min.default, call(aten.amax.default, argument(node, "input"), [-1], True), 0.0)
    scale, zero_point = _affine(call, (least, most), (-128, 127), _EPS)
    return call.stored(scale), call(aten.to.dtype, call.stored(zero_point), torch.int64)


def _affine(call: _Writer, found: tuple[Node, Node], limits: tuple[int, int], eps: float) -> tuple[Node, Node]:
    """Scale and zero point, both float32, of the smallest and the largest value."""
    (least, most), (low, high) = found, limits
    steps = call(aten.div.Tensor, call(aten.sub.Tensor, most, least), float(high - low))
    scale = call(aten.clamp_min.default, steps, eps)
    offset = call(aten.round.default, call(aten.div.Tensor, least, scale))
    return scale, call(aten.clamp.default, call(aten.rsub.Scalar, offset, low), low, high)


def _of_symmetric_rows(call: _Writer, node: Node) -> tuple[Node, Node]:
    """Scale, float32 (..., 1), and zeros of that shape."""
    largest = call(aten.amax.default, call(aten.abs.default, argument(node, "input")), [-1], True)
    scale = call.stored(call(aten.div.Tensor, call(aten.clamp_min.default, largest, _SMALLEST), 127.0))
    return scale, call(aten.zeros_like.default, scale)


def _with_zero(call: _Writer, rows: Node) -> Node:
    """Append 0 to the results of the rows: (rows...) -> (rows + 1,). On the tensor itself it took 3 times as long."""
    return call(aten.constant_pad_nd.default, call(aten.reshape.default, rows, [-1]), [0, 1])


_WRITERS = {
    ops.CHOOSE_QPARAMS: _of_tensor,
    ops.CHOOSE_QPARAMS_PER_TOKEN_ASYMMETRIC: _of_rows,
    ops.CHOOSE_QPARAMS_PER_TOKEN: _of_symmetric_rows,
}
