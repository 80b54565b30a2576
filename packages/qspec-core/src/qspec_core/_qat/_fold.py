"""From the training form of a graph to the evaluation form that convert takes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qspec_core._qat._expand import observed_layers
from qspec_core._spec import Q_ANNOTATION_KEY, QuantizationAnnotation
from qspec_core._train_eval import switch_graph
from qspec_core.canonical import fold_batch_norms
from qspec_core.canonical._batch_norm import affine_of, scale_channels
from qspec_core.canonical._batch_norm_forms import is_counter
from qspec_core.canonical._normalized import normalized_layer
from qspec_core.canonical._record import fold_node
from qspec_core.graph import (
    add_constant,
    argument,
    calls,
    copy_graph_module,
    graph_modules,
    is_call,
    replace_argument,
    tensor_value,
)
from qspec_core.graph._folding import compute_constants, erase_unread

__all__ = ["fold_training_form"]

aten = torch.ops.aten
_DROPOUTS = (
    *(aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default),
    *(aten.dropout_.default, aten.feature_dropout_.default, aten.alpha_dropout_.default),
)
_NOTE = "folded after training"


def fold_training_form(model: GraphModule) -> GraphModule:
    """Fold trained batch norms into their layers, and remove dropouts and counters of batches.

    The integers of a folded weight are those that evaluation rounded to.

    Args:
        model: a prepared module; not changed.
    Returns: a copy in evaluation mode; the module itself if it has no training form.
    Cost: O(nodes + edges), plus the arithmetic on the weights.
    """
    if not any(_has_training_form(body) for _, body in graph_modules(model)):
        return model
    copied = copy_graph_module(model)
    for _, body in graph_modules(copied):
        for counter in reversed(_counters(body)):
            body.graph.erase_node(counter)
        switch_graph(body, False)
        for dropout in calls(body.graph, *_DROPOUTS):
            fold_node(body, dropout, dropout.all_input_nodes[0], _NOTE)
        _fold_layers(body)
        fold_batch_norms(body)
    return copied


def _has_training_form(body: GraphModule) -> bool:
    norms = calls(body.graph, aten.batch_norm.default)
    if any(argument(norm, "training") or isinstance(normalized_layer(norm), Node) for norm in norms):
        return True
    return bool(calls(body.graph, *_DROPOUTS)) or bool(_counters(body))


def _counters(body: GraphModule) -> list[Node]:
    """The nodes that count batches."""
    return [node for node in calls(body.graph, aten.add_.Tensor) if is_counter(body, argument(node, "self"))]


def _fold_layers(body: GraphModule) -> None:
    """Fold each batch norm after a layer with an observed weight."""
    layers = [entry for entry in observed_layers(body) if is_call(argument(entry[0], "weight"))]
    wanted = [observer.all_input_nodes[0] for _, _, observer in layers]
    wanted += [bias for layer, _, _ in layers for bias in _bias_sources(layer)[:1]]
    values = compute_constants(body, wanted)
    for layer, norm, observer in layers:
        _fold_layer(body, layer, norm, observer, values)
    erase_unread(body, values)


def _operators_between(last: Node, observer: Node) -> list[Node]:
    """The operators from an observer to a weight, in graph order."""
    found = [last]
    while found[-1].all_input_nodes[0] is not observer:
        found.append(found[-1].all_input_nodes[0])
    return found[::-1]


def _bias_sources(layer: Node) -> list[Node]:
    """The node that a layer's bias is read from, before its observer, and the observer's node if there is one."""
    bias = argument(layer, "bias")
    if not isinstance(bias, Node):
        return []
    return [bias.all_input_nodes[0], bias] if bias.op == "call_module" else [bias]


def _fold_layer(
    body: GraphModule, layer: Node, norm: Node, observer: Node, values: Mapping[Node, Any]
) -> None:  # Any: tensors
    scaled, affine = observer.all_input_nodes[0], affine_of(body, norm)
    if affine is None:
        return
    # In training, a factor of 0 counts as that of a weight of 1. The folded weight is 0.
    weight = scale_channels(layer, values[scaled], (affine.factor != 0).double())
    observer.replace_input_with(
        scaled, add_constant(body, "_trained_weight_", weight, observer, fake=tensor_value(scaled))
    )
    unscaled = argument(layer, "weight")
    replace_argument(layer, "weight", observer)
    erase_unread(body, dict.fromkeys(_operators_between(unscaled, observer)))
    sources, offset = _bias_sources(layer), affine.offset
    if sources:
        offset = offset + values[sources[0]].detach().double() * affine.factor
    fake = tensor_value(argument(norm, "running_mean"))
    bias = add_constant(body, "_trained_bias_", offset.to(weight.dtype), layer, fake=fake)
    if len(sources) == 2:
        layer.prepend(sources[1])
        sources[1].prepend(bias)
        sources[1].replace_input_with(sources[0], bias)
    else:
        replace_argument(layer, "bias", bias)
    annotation = norm.meta.get(Q_ANNOTATION_KEY)
    if annotation is not None and annotation.output_qspec is not None:
        own = layer.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation())
        own.output_qspec = annotation.output_qspec
    fold_node(body, norm, layer, _NOTE)
