"""The evaluation form of a training graph, in which rows match: without dropout, and with batch norms folded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, GraphModule, Node

from qspec_core._coverage import decide_folded, decide_skipped
from qspec_core._quantizer._base import annotate_input_qspec_map, annotate_output_qspec
from qspec_core._spec import (
    Q_ANNOTATION_KEY,
    DerivedQuantizationSpec,
    EdgeOrNode,
    QuantizationAnnotation,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from qspec_core.canonical._normalized import normalized_layer
from qspec_core.graph import argument, argument_names, calls
from qspec_core.patterns import Reason

__all__ = ["evaluation_form"]

aten = torch.ops.aten
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)


class _Bypassed(NamedTuple):
    """An operator that the graph goes around for the time of annotation.

    Args:
        node: the operator.
        source: the node whose value its readers take instead.
        arguments: its own arguments.
        readers: each of its readers, with the arguments before.
    """

    node: Node
    source: Node
    arguments: tuple[Any, ...]  # fx's argument types
    readers: tuple[tuple[Node, tuple[Any, ...], dict[str, Any]], ...]


@contextmanager
def evaluation_form(module: GraphModule) -> Iterator[None]:
    """Take dropouts, and batch norms after the layers that they normalize, out of a graph's data flow for a while.

    Inside, rows match as they do in the converted graph. Annotations made inside are moved afterwards: the output of a
    layer is that of its batch norm, and an edge after a dropout is the one before it, so that the range is that of
    evaluation. Each operator gets its coverage: folded, or the reason why a batch norm stays.

    Args:
        module: an exported graph module that the caller owns, with batch norms and dropouts in canonical form.
    Cost: O(nodes + edges of the operators taken out).
    """
    graph = module.graph
    bypassed = _take_out(graph)
    try:
        yield
    finally:
        for taken in reversed(bypassed):
            _put_back(taken)
    _move_annotations(graph, bypassed)


def _take_out(graph: Graph) -> list[_Bypassed]:
    plan: list[tuple[Node, str]] = []
    for norm in calls(graph, aten.batch_norm.default):
        layer = normalized_layer(norm)
        if isinstance(layer, Reason):
            decide_skipped(norm, layer)
        else:
            decide_folded(norm, f"folded into {layer.name} when the model is converted")
            plan.append((norm, "input"))
    for dropout in calls(graph, *_DROPOUTS):
        decide_folded(dropout, "identity in evaluation")
        plan.append((dropout, "input"))
    return [_bypass(node, argument(node, name)) for node, name in plan]


def _bypass(node: Node, source: Node) -> _Bypassed:
    """Let the readers of a node read `source`, and let the node read nothing, so that it is no reader of `source`."""
    readers = tuple((user, user.args, dict(user.kwargs)) for user in node.users)
    taken = _Bypassed(node, source, (node.args, dict(node.kwargs)), readers)
    node.replace_all_uses_with(source)
    rest = [argument(node, name) for name in argument_names(node.target)[1:]]  # type: ignore[arg-type]  # calls() gave it
    node.args, node.kwargs = (None, *rest), {}
    return taken


def _put_back(taken: _Bypassed) -> None:
    taken.node.args, taken.node.kwargs = taken.arguments
    for reader, args, kwargs in taken.readers:
        reader.args, reader.kwargs = args, kwargs


def _move_annotations(graph: Graph, bypassed: list[_Bypassed]) -> None:
    """Move annotations that name the source of a bypassed operator to the edges and nodes of the restored graph."""
    moved: dict[EdgeOrNode, EdgeOrNode] = {}
    by_node = {taken.node: taken for taken in bypassed}
    norms = {taken.source: taken.node for taken in bypassed if taken.node.target is aten.batch_norm.default}
    for taken in bypassed:
        for reader in dict.fromkeys(reader for reader, _, _ in taken.readers):
            if reader not in by_node:
                _move_input(taken.source, reader, by_node, moved)
    for layer, norm in norms.items():
        annotation = layer.meta.get(Q_ANNOTATION_KEY)
        if annotation is not None and annotation.output_qspec is not None:
            annotate_output_qspec(norm, annotation.output_qspec)
            annotation.output_qspec = None
            moved[layer] = norm
    if moved:
        _redirect(graph, moved)


def _move_input(
    source: Node, reader: Node, bypassed: Mapping[Node, _Bypassed], moved: dict[EdgeOrNode, EdgeOrNode]
) -> None:
    """Move a reader's spec for `source` to the edges of the restored graph on which it reads that tensor."""
    annotation = reader.meta.get(Q_ANNOTATION_KEY)
    if annotation is None or source not in annotation.input_qspec_map:
        return
    spec = annotation.input_qspec_map.pop(source)
    for value in reader.all_input_nodes:
        producer, consumer = value, reader
        while producer in bypassed and producer.target is not aten.batch_norm.default:  # before the first dropout
            producer, consumer = argument(producer, "input"), producer
        flat = bypassed[producer].source if producer in bypassed else producer
        if flat is not source:
            continue
        if spec is not None or consumer is reader:
            annotate_input_qspec_map(consumer, producer, spec)
        if not annotation.allow_implicit_sharing and consumer is not reader:
            consumer.meta[Q_ANNOTATION_KEY].allow_implicit_sharing = False
        moved.setdefault((source, reader), (producer, consumer))


def _redirect(graph: Graph, moved: Mapping[EdgeOrNode, EdgeOrNode]) -> None:
    """Let specs that refer to a moved point refer to its new place."""

    def redirected(spec: QuantizationSpecBase | None) -> QuantizationSpecBase | None:
        if isinstance(spec, SharedQuantizationSpec):
            return replace(spec, edge_or_node=moved.get(spec.edge_or_node, spec.edge_or_node))
        if isinstance(spec, DerivedQuantizationSpec):
            return replace(spec, derived_from=[moved.get(point, point) for point in spec.derived_from])
        return spec

    for node in graph.nodes:
        annotation = node.meta.get(Q_ANNOTATION_KEY)
        if isinstance(annotation, QuantizationAnnotation):
            inputs = annotation.input_qspec_map
            annotation.input_qspec_map = {source: redirected(spec) for source, spec in inputs.items()}
            annotation.output_qspec = redirected(annotation.output_qspec)
