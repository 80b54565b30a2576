"""Operators that ExecuTorch does not take, or the delegate computes wrongly, written with operators that both take."""

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from qspec_core.graph import add_constant, argument, constant_value, tensor_value

__all__ = ["decompose"]

aten = torch.ops.aten
_SELU = (1.6732632423543772, 1.0507009873554805)
"""Alpha and scale of SELU: Klambauer et al., "Self-normalizing neural networks", 2017, equation 14."""


def decompose(module: GraphModule) -> None:
    """Rewrite, in place: SELU, CELU and ELU with scales; RReLU; adaptive maximum pools; variance together with mean;
    bilinear layers.

    What has no rewriting is left alone; ExecuTorch names it in its error.

    Args:
        module: a converted graph module in canonical form that the caller owns.
    Cost: O(nodes), and one node for each row and column that an adaptive pool returns.
    """
    for node in list(module.graph.nodes):
        rewrite = _REWRITES.get(node.target) if node.op == "call_function" else None
        if rewrite is not None:
            rewrite(_Writer(module, node), node)


class _Writer:
    """Writes operators before a node."""

    def __init__(self, module: GraphModule, node: Node) -> None:
        self._module, self._node = module, node

    def call(self, target: OpOverload, *args: Any, **kwargs: Any) -> Node:  # nodes, numbers, lists of them
        """Call an operator; its value is computed from the values of its arguments."""
        with self._module.graph.inserting_before(self._node):
            made = self._module.graph.call_function(target, args, kwargs)
        values = torch.fx.map_arg((args, kwargs), lambda node: node.meta["val"])
        made.meta = {**self._node.meta, "val": target(*values[0], **values[1])}
        return made

    def times(self, source: Node, number: float) -> Node:
        """A product with a number, as a constant tensor: the delegate takes no numbers."""
        if number == 1:
            return source
        return self.call(aten.mul.Tensor, source, add_constant(self._module, "number", _tensor(number), self._node))

    def constant(self, value: torch.Tensor) -> Node:
        """A constant of the module."""
        return add_constant(self._module, "constant", value, self._node)

    def value_of(self, node: Node) -> torch.Tensor | None:
        """The tensor that a node reads, if it is a constant."""
        return constant_value(self._module, node)

    def replace(self, node: Node, result: Node) -> None:
        """Let every reader of a node read the result, and remove the node."""
        node.replace_all_uses_with(result)
        self._module.graph.erase_node(node)


def _tensor(number: float) -> torch.Tensor:
    return torch.tensor([number])


def _selu(writer: _Writer, node: Node) -> None:
    _scaled_elu(writer, node, *_SELU, 1.0)


def _celu(writer: _Writer, node: Node) -> None:
    alpha = float(argument(node, "alpha"))
    _scaled_elu(writer, node, alpha, 1.0, 1 / alpha)


def _elu(writer: _Writer, node: Node) -> None:
    alpha, scale, input_scale = (float(argument(node, name)) for name in ("alpha", "scale", "input_scale"))
    if (scale, input_scale) != (1, 1):
        _scaled_elu(writer, node, alpha, scale, input_scale)


def _scaled_elu(writer: _Writer, node: Node, alpha: float, scale: float, input_scale: float) -> None:
    """Write scale * x for x > 0, else scale * alpha * (exp(input_scale * x) - 1), as products around a plain ELU."""
    value = tensor_value(argument(node, "self"))
    if value is None or value.dtype is not torch.float32 or input_scale <= 0 or alpha <= 0:
        return
    source = writer.times(argument(node, "self"), input_scale)
    plain = writer.call(aten.elu.default, source, alpha * input_scale)
    writer.replace(node, writer.times(plain, scale / input_scale))


def _rrelu(writer: _Writer, node: Node) -> None:
    """Write the form for evaluation, a leaky ReLU with the mean slope."""
    if not argument(node, "training"):
        slope = (argument(node, "lower") + argument(node, "upper")) / 2
        writer.replace(node, writer.call(aten.leaky_relu.default, argument(node, "self"), slope))


def _adaptive_max_pool(writer: _Writer, node: Node) -> None:
    """Write maxima over each dimension in turn: the window of an output element is a product of ranges."""
    source, sizes = argument(node, "self"), argument(node, "output_size")
    value = tensor_value(source)
    readers = list(node.users)
    takes_indices = any(reader.args[1] != 0 for reader in readers if reader.op == "call_function")
    if value is None or takes_indices or any(reader.op == "output" for reader in readers):
        return
    if not all(isinstance(size, int) for size in value.shape):
        return
    found, first = source, value.dim() - len(sizes)
    for dim, size in enumerate(sizes, start=first):
        length = value.shape[dim]
        # (..., length, ...) -> (..., 1, ...) for each output element -> (..., size, ...)
        ranges = [(index * length // size, -((-(index + 1) * length) // size)) for index in range(size)]
        parts = [_largest(writer, found, dim, *limits) for limits in ranges]
        found = parts[0] if len(parts) == 1 else writer.call(aten.cat.default, parts, dim)
    for reader in readers:
        writer.replace(reader, found)
    node.graph.erase_node(node)


def _largest(writer: _Writer, source: Node, dim: int, start: int, stop: int) -> Node:
    part = writer.call(aten.slice.Tensor, source, dim, start, stop)
    return part if stop - start == 1 else writer.call(aten.amax.default, part, [dim], True)


def _spread_and_mean(writer: _Writer, node: Node) -> None:
    """Write a variance, or standard deviation, and a mean as operators of their own."""
    source = argument(node, "self")
    value = tensor_value(source)
    if value is None or not all(reader.op == "call_function" for reader in node.users):
        return
    names = {entry.name for entry in node.target._schema.arguments}  # type: ignore[union-attr]  # an OpOverload
    dims = argument(node, "dim") if "dim" in names else None
    dims = list(range(value.dim())) if not dims else list(dims)
    keep = bool(argument(node, "keepdim")) if "keepdim" in names else False
    correction = argument(node, "correction") if "correction" in names else int(argument(node, "unbiased"))
    for reader in list(node.users):
        if reader.args[1] == 1:
            found = writer.call(aten.mean.dim, source, dims, keep)
        else:
            found = writer.call(aten.var.correction, source, dims, correction=correction, keepdim=keep)
            if node.target in _DEVIATIONS:
                found = writer.call(aten.sqrt.default, found)
        writer.replace(reader, found)
    node.graph.erase_node(node)


def _bilinear(writer: _Writer, node: Node) -> None:
    """Write a linear layer over the first input, then products with the second and their sums."""
    left, right, bias = (argument(node, name) for name in ("input1", "input2", "bias"))
    weight, value = writer.value_of(argument(node, "weight")), tensor_value(right)
    if weight is None or value is None or not all(isinstance(size, int) for size in value.shape):
        return
    outputs, _, width = weight.shape
    # (outputs, inputs, width) -> (outputs * width, inputs)
    rows = writer.constant(weight.detach().transpose(1, 2).flatten(0, 1).contiguous())
    found = writer.call(aten.linear.default, left, rows)
    # (..., outputs * width) -> (..., outputs, width) -> (..., outputs)
    found = writer.call(aten.view.default, found, [*value.shape[:-1], outputs, width])
    found = writer.call(aten.mul.Tensor, found, writer.call(aten.unsqueeze.default, right, -2))
    found = writer.call(aten.sum.dim_IntList, found, [-1])
    writer.replace(node, found if bias is None else writer.call(aten.add.Tensor, found, bias))


_DEVIATIONS = (aten.std_mean.default, aten.std_mean.dim, aten.std_mean.correction)
_VARIANCES = (aten.var_mean.default, aten.var_mean.dim, aten.var_mean.correction)
_ADAPTIVE = (aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
_REWRITES: dict[Any, Callable[[_Writer, Node], None]] = {  # keys are operator overloads
    aten.selu.default: _selu,
    aten.celu.default: _celu,
    aten.elu.default: _elu,
    aten.rrelu.default: _rrelu,
    aten.bilinear.default: _bilinear,
    **dict.fromkeys(_ADAPTIVE, _adaptive_max_pool),
    **dict.fromkeys((*_DEVIATIONS, *_VARIANCES), _spread_and_mean),
}
