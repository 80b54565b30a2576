"""Checks in prepare: the model, the quantizer, its annotations, and its edits of the observers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from qspec_core._coverage import Coverage
from qspec_core._errors import AnnotationError, GraphError, NothingQuantizedError
from qspec_core._spec import Q_ANNOTATION_KEY, QuantizationAnnotation
from qspec_core.graph import argument, calls, graph_modules, is_call, is_float, model_is_exported, require_no_observers

__all__ = [
    "require_fresh",
    "require_in_evaluation",
    "require_observers",
    "require_quantizer",
    "require_some",
    "require_tensors",
]

aten = torch.ops.aten

_STEPS = ("transform_for_annotation", "annotate", "validate", "prepare_obs_or_fq_callback")

_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)


def require_fresh(model: GraphModule) -> None:
    """Raise unless the graph was made by `torch.export` and holds no observers yet."""
    require_no_observers(
        model,
        "the model is prepared already",
        expected="a graph without observers",
        remedy="convert it with convert_pt2e, or prepare the exported model it was made from",
    )
    if not model_is_exported(model):
        raise GraphError(
            "the graph was not made by torch.export: its nodes carry no fake tensors",
            found=type(model).__qualname__,
            expected="torch.export.export(model.eval(), example_inputs).module()",
            remedy="export the model instead of tracing it symbolically",
        )


def require_in_evaluation(model: GraphModule) -> None:
    """Raise if a batch norm or dropout was traced in training mode."""
    for node in (
        node for _, body in graph_modules(model) for node in calls(body.graph, *_DROPOUTS, aten.batch_norm.default)
    ):
        flag = _training_flag(node)
        if flag is not None and argument(node, flag):
            raise GraphError(
                f"{node.target} was traced in training mode",
                where=node,
                found=f"{flag}=True",
                expected=f"{flag}=False",
                remedy="call model.eval() before torch.export.export; to train, use prepare_qat_pt2e",
            )


def require_quantizer(quantizer: object, step: str) -> None:
    """Raise unless the object has the methods of a quantizer and is an instance."""
    missing = [step for step in _STEPS if not callable(getattr(quantizer, step, None))]
    if missing or isinstance(quantizer, type):
        raise AnnotationError(
            f"{step} takes a quantizer as its second argument",
            found=f"the class {quantizer.__name__}" if isinstance(quantizer, type) else repr(quantizer),
            expected=f"a Quantizer{', which has ' + ', '.join(missing) if missing else ''}",
            remedy="make an instance of a quantizer and give it its configuration: XQuantizer().set_global(config)",
        )


def _training_flag(node: Node) -> str | None:
    """Name of the operand that says whether the node was traced in training mode.

    A batch norm without running statistics has none: it uses the statistics of its input in either mode.
    """
    if is_call(node, *_DROPOUTS):
        return "train"
    is_norm = is_call(node, aten.batch_norm.default)
    return "training" if is_norm and argument(node, "running_mean") is not None else None


def require_tensors(module: GraphModule) -> None:
    """Raise unless every annotation is a `QuantizationAnnotation` and has specs for floating-point tensors only."""
    for node in module.graph.nodes:
        annotation = node.meta.get(Q_ANNOTATION_KEY)
        if annotation is None:
            continue
        if not isinstance(annotation, QuantizationAnnotation):
            raise AnnotationError(
                f"the annotation of '{node.name}' is not a QuantizationAnnotation",
                where=node,
                found=repr(annotation),
                remedy=f"store a QuantizationAnnotation under node.meta['{Q_ANNOTATION_KEY}']",
            )
        points = [(f"input '{source}'", source, spec) for source, spec in annotation.input_qspec_map.items()]
        for label, source, spec in (*points, ("the output", node, annotation.output_qspec)):
            value = source.meta.get("val") if isinstance(source, Node) else None
            is_end = source is node and node.op == "output"
            if spec is not None and (value is not None or is_end) and not is_float(source):
                found = "the end of the graph" if is_end else type(value).__name__
                raise AnnotationError(
                    f"{label} of '{node.name}' has a spec, but is not a floating-point tensor",
                    where=node,
                    found=f"{value.dtype}" if isinstance(value, torch.Tensor) else found,
                    expected="a floating-point tensor",
                    remedy="leave this point out of the annotation; annotate what reads one item of a tuple instead",
                )


def require_some(found: Coverage) -> None:
    """Raise if no row matched."""
    if not found.quantized:
        raise NothingQuantizedError(
            "the quantizer matched nothing in the model",
            found=found.summary(),
            expected="at least one operator quantized by a row",
            remedy="change the configuration or the selectors by the reasons above; to go on with nothing quantized, "
            "call prepare_pt2e with allow_empty=True",
        )


def require_observers(
    module: GraphModule, observers: Mapping[Any, Any]
) -> None:  # Any: a callback may have put in anything
    """Raise unless the map that a quantizer edited still maps points of the graph to modules."""
    for point, observer in observers.items():
        source, consumer = point if isinstance(point, tuple) else (point, None)
        is_here = isinstance(source, Node) and source.graph is module.graph
        if consumer is not None:
            is_here = is_here and isinstance(consumer, Node) and source in consumer.all_input_nodes
        if is_here and isinstance(observer, nn.Module):
            continue
        raise AnnotationError(
            "prepare_obs_or_fq_callback left a point without a module"
            if is_here
            else "prepare_obs_or_fq_callback added a point that the graph does not have",
            where=(source if consumer is None else consumer) if is_here else None,
            found=repr(observer) if is_here else repr(point),
            expected="an observer or a fake-quantize for each point",
            remedy="change the values of the map that the callback is given, or delete entries; add no points",
        )
