"""prepare: a copy of an exported graph in which every quantization point is observed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from qspec_core.canonical import fold_batch_norms, fold_weights
from qspec_core.canonical._functional import is_private
from qspec_core.coverage import Coverage, operators, record_coverage
from qspec_core.errors import AnnotationError, GraphError, NothingQuantizedError, QSpecError, SpecError, Where
from qspec_core.foreign import adopt_annotations
from qspec_core.graphs import (
    copy_graph_module,
    derived_meta,
    fresh_attribute_name,
    gc_paused,
    is_float,
    model_is_exported,
    require_exported,
)
from qspec_core.observers import DerivedObserverOrFakeQuantize, FixedQParamsObserver, build_observer
from qspec_core.patterns import argument, called_operator, calls, is_call, written_arguments
from qspec_core.quantizer import Quantizer
from qspec_core.sharing import Group, Resolution, resolve
from qspec_core.sinking import sink_constants
from qspec_core.spec import (
    Q_ANNOTATION_KEY,
    DerivedQuantizationSpec,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
)
from qspec_core.subgraphs import attribute, bodies, graph_modules, set_attribute

__all__ = ["is_observer", "observer_nodes", "prepare_pt2e"]

aten = torch.ops.aten
_STEPS = ("transform_for_annotation", "annotate", "validate", "prepare_obs_or_fq_callback")
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)


def is_observer(module: object) -> bool:
    """Whether a submodule is an observer or a fake-quantize, ours or another stack's: it can compute parameters."""
    return isinstance(module, nn.Module) and callable(getattr(module, "calculate_qparams", None))


def observer_nodes(module: GraphModule) -> list[tuple[Node, nn.Module]]:
    """The nodes that call observers, each with its observer, in graph order."""
    found = ((node, attribute(module, str(node.target))) for node in module.graph.find_nodes(op="call_module"))
    return [(node, called) for node, called in found if is_observer(called)]


def prepare_pt2e(model: GraphModule, quantizer: Quantizer, *, allow_empty: bool = False) -> GraphModule:
    """Copy an exported model, let a quantizer annotate it, and insert an observer at every quantization point.

    The copy shares the model's parameters; the model itself is not changed. Batch norms are folded into the layers
    before them first. Bodies of control flow (`no_grad` regions, branches, loops) are graphs that the quantizer
    annotates one by one. Call the result on calibration data, then `convert_pt2e` it.

    Args:
        model: an exported graph module, traced in evaluation mode: `torch.export.export(...).module()`.
        quantizer: annotates the copy.
        allow_empty: accept a quantizer that has a configuration and matches nothing.
    Returns: the observed module; `coverage(module)` says what will be quantized, and what not and why.
    Raises:
        GraphError: the model is not exported, already prepared, or traced in training mode.
        NothingQuantizedError: a table quantizer that has a configuration matched nothing.
        AnnotationError, SharingError, SelectorError: the quantizer is none, or its annotations, its edits of the
            observers or its selectors do not fit the model.
        SpecError: a spec's observer cannot be built.
    Cost: O(nodes + edges).
    """
    _require_fresh(require_exported(model, "prepare_pt2e"))
    _require_quantizer(quantizer)
    with gc_paused():
        prepared = copy_graph_module(model)
        original = operators(prepared)
        sink_constants(prepared)
        prepared = _annotate(prepared, quantizer)
        for _, body in graph_modules(prepared):
            _require_tensors(body)
        quantizer.validate(prepared)
        found = record_coverage(prepared, original, type(quantizer).__name__)
        if getattr(quantizer, "has_configuration", False) and not allow_empty:
            _require_some(found)
        plans = [(body, _observers(resolve(body.graph))) for _, body in graph_modules(prepared)]
        for body, observers in plans:
            quantizer.prepare_obs_or_fq_callback(body, observers)
            _require_observers(body, observers)
            _insert(body, observers)
            body.recompile()
    return prepared


def _annotate(module: GraphModule, quantizer: Quantizer) -> GraphModule:
    """Fold, transform and annotate a graph, and each body in it as a graph of its own."""
    fold_weights(module)
    fold_batch_norms(module)
    module = quantizer.transform_for_annotation(module)
    if not isinstance(module, GraphModule):
        raise AnnotationError(
            f"{type(quantizer).__name__}.transform_for_annotation returned no graph module",
            found=type(module).__qualname__,
            expected="the module it was given, or another in its place",
            remedy="end transform_for_annotation with `return model`",
        )
    quantizer.annotate(module)
    adopt_annotations(module)
    for target, body in bodies(module).items():
        set_attribute(module, target, _annotate(body, quantizer))
    return module


def _require_fresh(model: GraphModule) -> None:
    """Raise unless the graph came from an export in evaluation mode and holds no observers yet."""
    graphs = [body for _, body in graph_modules(model)]
    live = [entry for body in graphs for entry in observer_nodes(body)]
    if live:
        raise GraphError(
            "the model is prepared already",
            where=live[0][0],
            found=f"{len(live)} live observers",
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
    for node in (node for body in graphs for node in calls(body.graph, *_DROPOUTS, aten.batch_norm.default)):
        flag = _training_flag(node)
        if flag is not None and argument(node, flag):
            raise GraphError(
                f"{node.target} was traced in training mode",
                where=node,
                found=f"{flag}=True",
                expected=f"{flag}=False",
                remedy="call model.eval() before torch.export.export",
            )


def _require_quantizer(quantizer: object) -> None:
    missing = [step for step in _STEPS if not callable(getattr(quantizer, step, None))]
    if missing or isinstance(quantizer, type):
        raise AnnotationError(
            "prepare_pt2e takes a quantizer as its second argument",
            found=f"the class {quantizer.__name__}" if isinstance(quantizer, type) else repr(quantizer),
            expected=f"a Quantizer{', which has ' + ', '.join(missing) if missing else ''}",
            remedy="make an instance of a quantizer and give it its configuration: XQuantizer().set_global(config)",
        )


def _training_flag(node: Node) -> str | None:
    """Name of the operand that says whether the node was traced in training mode.

    A batch norm without running statistics has none: it takes those of its input in either mode.
    """
    if is_call(node, *_DROPOUTS):
        return "train"
    is_norm = is_call(node, aten.batch_norm.default)
    return "training" if is_norm and argument(node, "running_mean") is not None else None


def _require_tensors(module: GraphModule) -> None:
    """Raise unless every annotation is one, and every tensor that it has a spec for holds floating-point numbers."""
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


def _require_some(found: Coverage) -> None:
    if not found.quantized:
        raise NothingQuantizedError(
            "the quantizer matched nothing in the model",
            found=found.summary(),
            expected="at least one operator quantized by a row",
            remedy="change the configuration or the selectors by the reasons above, or pass allow_empty=True",
        )


def _require_observers(module: GraphModule, observers: Mapping[Any, Any]) -> None:  # Any: a callback edited it
    """Raise unless a quantizer left a map from points of the graph to modules."""
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


def _observers(resolution: Resolution) -> dict[EdgeOrNode, nn.Module]:
    """One observer for each group, under every point of the group."""
    made: dict[int, nn.Module] = {}
    for index in resolution.order:
        group = resolution.groups[index]
        place = _place(group)
        try:
            made[index] = _build(group, [made[source] for source in group.derived_from])
            _move(made[index], group)
        except Exception as error:  # a constructor is its author's code, and may raise anything
            raise _not_built(error, place) from error
        made[index].where = place  # type: ignore[assignment]  # a plain attribute, read by observers in errors
    return {point: made[group.index] for group in resolution.groups for point in group.points}


def _build(group: Group, sources: list[nn.Module]) -> nn.Module:
    spec = group.spec
    if isinstance(spec, QuantizationSpec):
        return build_observer(spec)
    if isinstance(spec, FixedQParamsQuantizationSpec):
        low, high = (int(limit) for limit in spec.range) if spec.range is not None else (None, None)
        qscheme = torch.per_tensor_affine if spec.qscheme is None else spec.qscheme
        return FixedQParamsObserver(spec.scale, spec.zero_point, spec.dtype, qscheme, low, high)
    if isinstance(spec, DerivedQuantizationSpec):
        fields = {name: getattr(spec, name) for name in ("dtype", "quant_min", "quant_max", "qscheme", "ch_axis")}
        return DerivedObserverOrFakeQuantize(obs_or_fqs=sources, derive_qparams_fn=spec.derive_qparams_fn, **fields)
    raise TypeError(f"no observer is built from {type(spec).__qualname__}")  # resolve() has refused every other class


def _move(observer: nn.Module, group: Group) -> None:
    """Move an observer to the device of its group's first tensor."""
    point = group.points[0]
    value = (point[0] if isinstance(point, tuple) else point).meta.get("val")
    if isinstance(value, torch.Tensor) and value.device != torch.get_default_device():  # where it was built
        observer.to(value.device)


def _not_built(error: Exception, place: Where) -> QSpecError:
    """What an observer's constructor raised, with the place of its point."""
    if isinstance(error, QSpecError):
        return error.at(place)
    return SpecError(
        "the constructor of a spec's observer failed",
        where=place,
        found=repr(error),
        remedy="correct observer_or_fake_quant_ctr and the arguments of its with_args(...)",
    )


def _place(group: Group) -> Where:
    """Place of a group's first point; a parameter, which is traced nowhere, is where it is read."""
    point = group.points[0]
    source, reader = point if isinstance(point, tuple) else (point, point)
    place = Where.of(source)
    return Where(source.name, *Where.of(reader)[1:]) if place.source_line is None else place


def _insert(module: GraphModule, observers: dict[EdgeOrNode, nn.Module]) -> None:
    """Insert the observers: after each producer its output's, then one for each other group among its readers.

    An edge whose observer differs from that of its producer's output reads through both. An edge over which the reader
    writes to a tensor that others see stays as it is: what it writes must reach the tensor itself. Guards read the
    inputs themselves.

    Cost: O(points + edges).
    """
    edges: dict[Node, dict[nn.Module, list[Node]]] = {}
    for point, observer in observers.items():
        if isinstance(point, tuple):
            edges.setdefault(point[0], {}).setdefault(observer, []).append(point[1])
    after_inputs = _after_inputs(module)
    position = {node: index for index, node in enumerate(module.graph.nodes)}
    kept = {
        (node, source)
        for node in module.graph.nodes
        for source in node.all_input_nodes
        if _writes(node, source) and not is_private(source, position, position[node])
    }
    for producer in list(module.graph.nodes):
        own, readers = observers.get(producer), edges.get(producer, {})
        if own is None and not readers:
            continue
        spot = after_inputs if producer.op == "placeholder" else producer.next
        source = producer
        if own is not None:
            source = _observe(module, own, producer, spot, next(iter(producer.users), None))
            for user in list(producer.users):
                if user is not source and not _is_guard(user) and (user, producer) not in kept:
                    user.replace_input_with(producer, source)
        for observer, consumers in readers.items():
            if observer is own:
                continue
            observed = _observe(module, observer, source, spot, consumers[0])
            for consumer in consumers:
                if (consumer, producer) not in kept:
                    consumer.replace_input_with(source, observed)


def _after_inputs(module: GraphModule) -> Node:
    """The first node behind the inputs and the guards of `torch.export`: what these refuse must not be observed."""
    inputs = module.graph.find_nodes(op="placeholder")
    spot: Node = inputs[-1].next if inputs else next(iter(module.graph.nodes))
    while spot.op == "get_attr" or _is_guard(spot):
        spot = spot.next
    return spot


def _is_guard(node: Node) -> bool:
    """Whether a node is a check of the inputs, which `torch.export` calls as a module without a result."""
    return node.op == "call_module" and not node.users


def _observe(module: GraphModule, observer: nn.Module, source: Node, before: Node, reader: Node | None) -> Node:
    name = fresh_attribute_name(module, "activation_post_process_")
    module.add_module(name, observer)
    with module.graph.inserting_before(before):
        node = module.graph.call_module(name, (source,))
    node.meta = derived_meta(source, "prepare_pt2e", reader)
    return node


def _writes(consumer: Node, producer: Node) -> bool:
    operator = called_operator(consumer)
    return operator is not None and any(argument(consumer, n) is producer for n in written_arguments(operator))
