"""The training form of layers with batch norms: weights are rounded as those of the folded layer will be."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from qspec_core._torch import OpOverload
from qspec_core.canonical._batch_norm import is_transposed
from qspec_core.canonical._normalized import normalized_layer
from qspec_core.graph import (
    argument,
    attribute,
    calls,
    derived_meta,
    is_observer,
    replace_argument,
    require_tensor_value,
    tensor_value,
)

__all__ = ["expand_batch_norms", "observed_layers"]

aten = torch.ops.aten
_PASS = "prepare_qat_pt2e"


def observed_layers(module: GraphModule) -> list[tuple[Node, Node, Node]]:
    """Layers whose weight is observed, each with its batch norm and the node of its weight's observer.

    The weight may be divided by the factor of the batch norm and cast after it is observed.
    """
    found = []
    for norm in calls(module.graph, aten.batch_norm.default):
        layer = normalized_layer(norm)
        if not isinstance(layer, Node):
            continue
        weight = argument(layer, "weight")
        while weight.op == "call_function" and weight.target in (aten.div.Tensor, aten.to.dtype):
            weight = weight.args[0]
        if weight.op == "call_module" and is_observer(attribute(module, str(weight.target))):
            found.append((layer, norm, weight))
    return found


def expand_batch_norms(module: GraphModule) -> None:
    """Round the weight of each layer with a batch norm as that of the folded layer, and let the batch norm stay.

    `layer(x, observer(weight))` becomes `layer(x, observer(weight * factor) / factor)`, where `factor` is the batch
    norm's `weight / sqrt(running_var + eps)` of each output channel. In evaluation, the layer and the batch norm then
    compute what the folded layer computes. In training, the batch norm normalizes by the batch as before. No gradient
    goes through the factor: it cancels except for the rounding.

    Args:
        module: a graph module that qspec owns, with observers.
    Cost: O(batch norms). For each layer, a training step scales its weight twice.
    """
    for layer, norm, observer in observed_layers(module):
        _expand(module.graph, layer, norm, observer)


def _expand(graph: Graph, layer: Node, norm: Node, observer: Node) -> None:
    first = next(iter(graph.nodes))
    for name in ("weight", "running_var"):
        source = argument(norm, name)
        if isinstance(source, Node) and layer < source:
            first.prepend(source)
    weight = observer.all_input_nodes[0]
    value = require_tensor_value(weight)
    layer.prepend(observer)
    with graph.inserting_before(observer):
        factor = _factor(graph, layer, norm)
        scaled = _call(graph, aten.mul.Tensor, (weight, factor), layer, value)
    observer.replace_input_with(weight, scaled)
    with graph.inserting_before(layer):
        unscaled = _call(graph, aten.div.Tensor, (observer, factor), layer, value)
        kept = tensor_value(argument(norm, "running_var"))
        if kept is not None and kept.dtype != value.dtype:
            unscaled = _call(graph, aten.to.dtype, (unscaled, value.dtype), layer, value)
    replace_argument(layer, "weight", unscaled)


def _factor(graph: Graph, layer: Node, norm: Node) -> Node:
    """The batch norm's factor of each output channel, in a shape that broadcasts with the layer's weight.

    A factor of 0, with which some networks start, counts as that of a weight of 1: the channel could not be divided
    by it.
    """
    variance, gamma = argument(norm, "running_var"), argument(norm, "weight")
    widened = _call(graph, aten.add.Tensor, (variance, argument(norm, "eps")), layer)
    factor = _call(graph, aten.rsqrt.default, (widened,), layer)
    if gamma is not None:
        fixed = _call(graph, aten.detach.default, (gamma,), layer)
        is_used = _call(graph, aten.ne.Scalar, (fixed, 0), layer)
        chosen = _call(graph, aten.where.ScalarOther, (is_used, fixed, 1.0), layer)
        factor = _call(graph, aten.mul.Tensor, (factor, chosen), layer)
    shape: Sequence[int] = require_tensor_value(argument(layer, "weight")).shape
    tail = [1] * (len(shape) - 2)
    if not is_transposed(layer):
        return _call(graph, aten.view.default, (factor, [-1, *[1] * (len(shape) - 1)]), layer)
    groups = argument(layer, "groups")
    if groups == 1:
        return _call(graph, aten.view.default, (factor, [1, -1, *tail]), layer)
    # (out,) -> (groups, 1, out / groups, 1...) -> (groups, in / groups, out / groups, 1...) -> (in, out / groups, 1...)
    grouped = _call(graph, aten.view.default, (factor, [groups, 1, shape[1], *tail]), layer)
    repeated = _call(graph, aten.expand.default, (grouped, [groups, shape[0] // groups, shape[1], *tail]), layer)
    return _call(graph, aten.reshape.default, (repeated, [shape[0], shape[1], *tail]), layer)


def _call(
    graph: Graph, target: OpOverload, arguments: tuple[Any, ...], layer: Node, value: torch.Tensor | None = None
) -> Node:  # Any: fx's argument types
    """Write a call for a layer, with its place in the model."""
    call = graph.call_function(target, arguments)
    call.meta = derived_meta(layer, _PASS)
    call.meta.pop("val", None)
    if value is not None:
        call.meta["val"] = value
    return call
