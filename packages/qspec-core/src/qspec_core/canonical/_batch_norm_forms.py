"""Write all batch norms as `aten.batch_norm` and all dropouts as `aten.dropout`, so that training passes see one form
of each."""

import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch.fx import GraphModule, Node

from qspec_core._torch import OpOverload
from qspec_core.canonical._record import fold_node
from qspec_core.graph import argument, argument_names, calls, constant_value, is_call

__all__ = ["BATCH_NORM_FORMS", "BatchNormForm", "canonicalize_batch_norms", "is_counter"]

aten = torch.ops.aten
_NOTE = "written as another operator with the same result"


class BatchNormForm(NamedTuple):
    """One spelling of a batch norm.

    Args:
        training: name of the argument that says whether batch statistics are used, or the fixed answer.
        momentum: name of the weight of the newest batch.
        eps: name of the number added to the variance.
        new_statistics: index of the result with the new running mean, for an operator that returns it; the new
            running variance comes after it.
    """

    training: str | bool = "training"
    momentum: str = "momentum"
    eps: str = "eps"
    new_statistics: int | None = None


_CUDNN = BatchNormForm(momentum="exponential_average_factor", eps="epsilon")
BATCH_NORM_FORMS: Mapping[OpOverload, BatchNormForm] = {
    aten._native_batch_norm_legit.default: BatchNormForm(),
    aten._native_batch_norm_legit.no_stats: BatchNormForm(),
    aten._native_batch_norm_legit_functional.default: BatchNormForm(new_statistics=3),
    aten._native_batch_norm_legit_no_training.default: BatchNormForm(training=False),
    aten.native_batch_norm.default: BatchNormForm(),
    aten.cudnn_batch_norm.default: _CUDNN,
    aten.miopen_batch_norm.default: _CUDNN,
    aten._batch_norm_with_update.default: BatchNormForm(training=True),
    aten._batch_norm_with_update_functional.default: BatchNormForm(training=True, new_statistics=4),
    aten._batch_norm_no_update.default: BatchNormForm(training=False),
}
"""Batch norms that return a tuple, whose first item is the normalized tensor."""


def canonicalize_batch_norms(module: GraphModule) -> None:
    """Write every batch norm as `batch_norm`, every `native_dropout` as `dropout`, and counters of batches as `add_`.

    An operator stays if something reads more of its results than the first: saved statistics, or a dropout's mask.

    Args:
        module: an exported graph module that the caller owns.
    Cost: O(batch norms and dropouts).
    """
    for node in calls(module.graph, *BATCH_NORM_FORMS):
        _rewrite_batch_norm(module, node)
    for node in calls(module.graph, aten.native_dropout.default):
        if set(_items(node)) <= {0}:
            arguments = (argument(node, "input"), argument(node, "p"), argument(node, "train") is not False)
            _replace(module, node, aten.dropout.default, arguments)
    for node in calls(module.graph, aten.copy_.default):
        _rewrite_counter(module, node)


def is_counter(module: GraphModule, node: object) -> bool:
    """Whether a node is the number of batches that a batch norm has seen, which no result depends on."""
    while is_call(node, aten.add_.Tensor):  # a batch norm that is called twice counts twice
        node = argument(node, "self")
    value = constant_value(module, node)
    if value is None or not isinstance(node, Node):
        return False
    return str(node.target).rpartition(".")[2] == "num_batches_tracked" and value.dim() == 0


def _items(node: Node) -> dict[int, list[Node]]:
    """The `getitem` nodes of a tuple that something reads, by index."""
    found: dict[int, list[Node]] = {}
    for user in node.users:
        index = user.args[1] if user.target is operator.getitem else None
        if user.users or not isinstance(index, int):
            found.setdefault(index if isinstance(index, int) else -1, []).append(user)
    return found


def _rewrite_batch_norm(module: GraphModule, node: Node) -> None:
    form = BATCH_NORM_FORMS[node.target]  # type: ignore[index]  # calls() found it by them
    items = _items(node)
    copies = [] if form.new_statistics is None else _copies_of_statistics(node, form.new_statistics, items)
    kept = {0} | ({form.new_statistics, form.new_statistics + 1} if copies and form.new_statistics else set())
    if not set(items) <= kept:
        return
    for copy in copies:
        module.graph.erase_node(copy)
    names = argument_names(node.target)  # type: ignore[arg-type]  # as above
    statistics = [argument(node, name) if name in names else None for name in ("running_mean", "running_var")]
    training = argument(node, form.training) if isinstance(form.training, str) else form.training
    affine = [argument(node, name) for name in ("weight", "bias")]
    numbers = (argument(node, form.momentum), argument(node, form.eps), False)
    arguments = (argument(node, "input"), *affine, *statistics, training, *numbers)
    _replace(module, node, aten.batch_norm.default, arguments)


def _copies_of_statistics(node: Node, first: int, items: Mapping[int, Sequence[Node]]) -> list[Node]:
    """The copies of new running statistics into the buffers that the batch norm read; empty if anything else reads
    them."""
    copies: list[Node] = []
    for index, name in enumerate(("running_mean", "running_var")):
        for item in items.get(first + index, ()):
            for reader in item.users:
                if not is_call(reader, aten.copy_.default) or argument(reader, "self") is not argument(node, name):
                    return []
                copies.append(reader)
    return copies


def _replace(module: GraphModule, node: Node, target: OpOverload, arguments: tuple[object, ...]) -> None:
    """Replace the first result of a tuple by a call of `target`, and erase the operator that gave the tuple."""
    with module.graph.inserting_before(node):
        made = module.graph.call_function(target, arguments)  # type: ignore[arg-type]  # operands of the node
    value = node.meta.get("val")
    made.meta = dict(node.meta) | ({"val": value[0]} if isinstance(value, tuple | list) else {})
    for item in list(node.users):
        if item.args[1] == 0:
            fold_node(module, item, made, _NOTE)
        else:
            module.graph.erase_node(item)
    module.graph.erase_node(node)


def _rewrite_counter(module: GraphModule, copy: Node) -> None:
    """Write `counter.copy_(counter + 1)`, as decomposed graphs count batches, as `counter.add_(1)`."""
    counter, total = argument(copy, "self"), argument(copy, "src")
    if not is_counter(module, counter) or not is_call(total, aten.add.Tensor) or copy.users or len(total.users) != 1:
        return
    if argument(total, "self") is counter:
        with module.graph.inserting_before(copy):
            made = module.graph.call_function(aten.add_.Tensor, (counter, argument(total, "other")))
        made.meta = dict(copy.meta)
        module.graph.erase_node(copy)
        module.graph.erase_node(total)
