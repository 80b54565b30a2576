"""Dynamic ranges of activations, in plain operators."""

import operator
from collections.abc import Callable

import torch
from torch.fx import GraphModule, Node

from qspec_core import ops
from qspec_core.graph import argument

__all__ = ["write_ranges"]

aten = torch.ops.aten


def write_ranges(module: GraphModule) -> None:
    """Replace each `choose_qparams` of a graph by plain operators with the values of its eager form, in place.

    Inductor's own decomposition does not widen a range to contain 0: inputs in 5..6 would all become one value. The
    eager form raises on an empty tensor. A zero added to the minima and maxima of the rows solves both.

    Cost: O(nodes); in a run, O(elements), as before.
    """
    for node in module.graph.find_nodes(op="call_function", target=ops.CHOOSE_QPARAMS):
        parameters = _parameters(module, node)
        for reader in list(node.users):
            if reader.target is operator.getitem:
                reader.replace_all_uses_with(parameters[reader.args[1]])
                module.graph.erase_node(reader)
    module.graph.eliminate_dead_code()


def _parameters(module: GraphModule, node: Node) -> tuple[Node, Node]:
    """Scale, float32 (1,), and zero point, int64 (1,)."""
    low, high, eps = (argument(node, name) for name in ("quant_min", "quant_max", "eps"))

    def call(target: object, *arguments: object) -> Node:
        return module.graph.call_function(target, arguments)  # type: ignore[arg-type]  # an operator, and its arguments

    with module.graph.inserting_before(node):
        least, most = (
            call(reduce, _with_zero(call, call(reduce, argument(node, "input"), [-1])), [0], True)
            for reduce in (aten.amin.default, aten.amax.default)
        )
        steps = call(aten.div.Tensor, call(aten.sub.Tensor, most, least), float(high - low))
        scale = call(aten.clamp_min.default, steps, eps)
        offset = call(aten.round.default, call(aten.div.Tensor, least, scale))
        zero_point = call(aten.clamp.default, call(aten.rsub.Scalar, offset, low), low, high)
        return scale, call(aten.to.dtype, zero_point, torch.int64)


def _with_zero(call: Callable[..., Node], rows: Node) -> Node:
    """Append 0 to the results of the rows: (rows...) -> (rows + 1,). On the tensor itself it took 3 times as long."""
    return call(aten.constant_pad_nd.default, call(aten.reshape.default, rows, [-1]), [0, 1])
