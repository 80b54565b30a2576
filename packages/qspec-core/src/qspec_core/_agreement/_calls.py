"""Calls by which a lowered program is checked, and what the converted graph gives for them."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from qspec_core import ops
from qspec_core._agreement._dither import dithered
from qspec_core._torch import evaluate_size, tree_leaves, tree_map
from qspec_core.graph import argument, constant_value, copy_graph_module, graph_modules, replace_argument, symbol_range
from qspec_core.graph._mutation import mutated_attributes

__all__ = ["Call", "calls_of", "copied_inputs"]


@dataclass(frozen=True)
class Call:
    """One call of the model.

    Args:
        label: which call it is, for messages.
        inputs: positional arguments.
        expected: what the converted graph gives, flattened.
        moved: what it gives with dithered rounding, flattened.
    """

    label: str
    inputs: tuple[Any, ...]  # a model's arguments may be of any type
    expected: tuple[Any, ...]
    moved: tuple[Any, ...]


def calls_of(converted: GraphModule, example_inputs: tuple[Any, ...]) -> tuple[Call, ...]:
    """The calls that a check makes: the example inputs; a second time where the graph keeps state in buffers; and with
    another size where sizes may vary.

    Args:
        converted: a graph from `convert_pt2e`. Copies of it run, so that its own state does not change.
        example_inputs: positional arguments of one call.
    Cost: two runs of the converted graph for each call.
    """
    device = next((leaf.device for leaf in converted.buffers()), torch.device("cpu"))
    plan = [("the example inputs", example_inputs)]
    if mutated_attributes(converted):
        plan.append(("a second call with the example inputs", example_inputs))
    other = _other_sizes(converted, example_inputs)
    if other is not None:
        plan.append(("inputs of another size", other))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exact = _without_zeros(copy_graph_module(converted))
        return tuple(_made(exact, dithered(exact), plan, device))


def _without_zeros(copied: GraphModule) -> GraphModule:
    """Let dequantizes of weights leave out zero points that are all 0: the same results.

    Subtracting zero points, which are int64, makes an int64 tensor of each int8 weight. A weight of 5632 by 2048 took
    160 ms with them, and 51 ms without.
    """
    for _, body in graph_modules(copied):
        for node in body.graph.find_nodes(op="call_function", target=ops.DEQUANTIZE_PER_CHANNEL):
            zero_points = constant_value(body, argument(node, "zero_points"))
            if zero_points is not None and not bool(zero_points.any()):
                replace_argument(node, "zero_points", None)
        body.recompile()
    return copied


def _made(
    exact: GraphModule, noisy: GraphModule, plan: Sequence[tuple[str, tuple[Any, ...]]], device: torch.device
) -> Iterator[Call]:
    for index, (label, inputs) in enumerate(plan):
        placed = _on(inputs, device)
        try:
            expected = exact(*copied_inputs(placed))
        except Exception:  # a guard of the export refuses sizes that were made up
            if index == 0:
                raise
            continue
        yield Call(label, inputs, tuple(tree_leaves(expected)), tuple(tree_leaves(noisy(*copied_inputs(placed)))))


def _on(inputs: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    def move(value: Any) -> Any:  # a leaf of the arguments
        return value.to(device) if isinstance(value, Tensor) else value

    moved: tuple[Any, ...] = tree_map(move, inputs)
    return moved


def copied_inputs(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments in tensors of their own, with their strides: a model may write to its inputs."""

    def copied_leaf(value: Any) -> Any:  # a leaf of the arguments
        return copy.deepcopy(value.detach()) if isinstance(value, Tensor) else value

    copied: tuple[Any, ...] = tree_map(copied_leaf, inputs)
    return copied


def _other_sizes(converted: GraphModule, example_inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The example inputs with each symbolic size one larger, or one smaller where that is too large; None where all
    sizes are fixed or a size is at both limits. Rows are repeated or cut."""
    values = [node.meta.get("val") for node in converted.graph.find_nodes(op="placeholder")]
    leaves = tree_leaves(example_inputs)
    chosen: dict[str, int] = {}
    for value, leaf in zip(values, leaves, strict=False):
        if not isinstance(value, Tensor) or not isinstance(leaf, Tensor) or value.dim() != leaf.dim():
            continue
        for size, here in zip(_sizes(value), leaf.shape, strict=True):
            found = symbol_range(size) if isinstance(size, torch.SymInt) else None
            if found is not None and found[0] not in chosen:
                name, low, high = found
                larger = here + 1
                chosen[name] = larger if high is None or larger <= high else max(low, here - 1)
    if not chosen or len(values) != len(leaves):
        return None
    placed = iter(values)

    def resized(leaf: Any) -> Any:  # a leaf of the arguments
        value = next(placed)
        if not isinstance(value, Tensor) or not isinstance(leaf, Tensor):
            return leaf
        for dim, size in enumerate(_sizes(value)):
            if isinstance(size, torch.SymInt):
                rows = torch.arange(evaluate_size(size, chosen), device=leaf.device) % max(leaf.shape[dim], 1)
                leaf = leaf.index_select(dim, rows)
        return leaf

    other: tuple[Any, ...] = tree_map(resized, example_inputs)
    return other


def _sizes(value: Tensor) -> tuple[int | torch.SymInt, ...]:
    """Sizes of a fake tensor, some of which may be symbolic."""
    return tuple(value.shape)
