"""`prepare_pt2e`: copy an exported graph, annotate it, and insert observers."""

from collections.abc import Mapping

from torch import Tensor
from torch.fx import GraphModule

from qspec_core._coverage import operators, record_coverage
from qspec_core._errors import AnnotationError
from qspec_core._prepare._adopt import adopt_annotations
from qspec_core._prepare._build import build_observers
from qspec_core._prepare._checks import (
    require_fresh,
    require_in_evaluation,
    require_observers,
    require_quantizer,
    require_some,
    require_tensors,
)
from qspec_core._prepare._insert import insert_observers
from qspec_core._quantizer import Quantizer
from qspec_core._sharing import resolve_sharing
from qspec_core.canonical import fold_batch_norms, fold_weights
from qspec_core.graph import (
    attribute,
    bodies,
    copy_graph_module,
    gc_paused,
    graph_modules,
    require_exported,
    set_attribute,
)
from qspec_core.graph._mutation import STATE_KEY, mutated_attributes
from qspec_core.graph._sinking import sink_constants

__all__ = ["annotate_graphs", "insert_into_graphs", "prepare_pt2e"]


def prepare_pt2e(model: GraphModule, quantizer: Quantizer, *, allow_empty: bool = False) -> GraphModule:
    """Copy an exported model, let a quantizer annotate it, and insert an observer at every quantization point.

    The copy shares the model's parameters; the model itself is not changed. Batch norms are folded into the layers
    before them first. Bodies of control flow (`no_grad` regions, branches, loops) are graphs that the quantizer
    annotates one by one. Call the result on calibration data, then `convert_pt2e` it.

    Args:
        model: an exported graph module, traced in evaluation mode: `torch.export.export(...).module()`.
        quantizer: annotates the copy.
        allow_empty: accept a quantizer that has a configuration and matches nothing.
    Returns: the observed module; `coverage(module)` tells which operators will be quantized, and why others will not.
    Raises:
        GraphError: the model is not exported, already prepared, or traced in training mode.
        NothingQuantizedError: a table quantizer that has a configuration matched nothing.
        AnnotationError, SharingError, SelectorError: the object is not a quantizer, or its annotations, its edits of
            the observers or its selectors do not fit the model.
        SpecError: a spec's observer cannot be built.
    Cost: O(nodes + edges).
    """
    require_fresh(require_exported(model, "prepare_pt2e"))
    require_in_evaluation(model)
    require_quantizer(quantizer, "prepare_pt2e")
    with gc_paused():
        prepared = copy_graph_module(model)
        original = operators(prepared)
        sink_constants(prepared)
        for _, body in graph_modules(prepared):
            fold_weights(body)
            fold_batch_norms(body)
        prepared = annotate_graphs(prepared, quantizer, original, allow_empty=allow_empty)
        insert_into_graphs(prepared, quantizer, is_qat=False)
        for _, body in graph_modules(prepared):
            body.recompile()
    return prepared


def annotate_graphs(
    module: GraphModule, quantizer: Quantizer, original: Mapping[str, tuple[str, str]], *, allow_empty: bool
) -> GraphModule:
    """Transform and annotate an owned graph and the bodies in it, check the annotations, and record the coverage.

    Args:
        module: an owned graph module in which constants are attributes.
        quantizer: annotates it.
        original: `operators` of the graph before any pass folded operators.
        allow_empty: accept a quantizer that has a configuration and matches nothing.
    Returns: the module, or the one that the quantizer made of it.
    """
    module = _annotate(module, quantizer)
    for _, body in graph_modules(module):
        require_tensors(body)
    quantizer.validate(module)
    found = record_coverage(module, original, type(quantizer).__name__)
    if getattr(quantizer, "has_configuration", False) and not allow_empty:
        require_some(found)
    return module


def insert_into_graphs(module: GraphModule, quantizer: Quantizer, *, is_qat: bool) -> None:
    """Build the observers of an annotated graph and of the bodies in it, let the quantizer edit them, and insert them.

    Code is not generated again.
    """
    plans = [(body, build_observers(resolve_sharing(body.graph), is_qat=is_qat)) for _, body in graph_modules(module)]
    for body, observers in plans:
        quantizer.prepare_obs_or_fq_callback(body, observers)
        require_observers(body, observers)
        insert_observers(body, observers)
        _keep_state(body)


def _keep_state(body: GraphModule) -> None:
    """Note the buffers that a graph mutates, so that the converted graph starts without the traces of calibration."""
    values = {target: attribute(body, target) for target in mutated_attributes(body)}
    state = {target: value.detach().clone() for target, value in values.items() if isinstance(value, Tensor)}
    if state:
        body.meta[STATE_KEY] = state


def _annotate(module: GraphModule, quantizer: Quantizer) -> GraphModule:
    """Transform and annotate a graph, and each body in it as a graph of its own."""
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
