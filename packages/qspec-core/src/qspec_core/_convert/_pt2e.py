"""`convert_pt2e`: observers become quantize and dequantize operators, weights become integers."""

from collections.abc import Container, Sequence

import torch
from torch.fx import GraphModule

from qspec_core import ops
from qspec_core._convert._constants import fold_observed_expressions
from qspec_core._convert._custom import convert_custom_observers
from qspec_core._convert._parameters import has_observed
from qspec_core._convert._plan import ObserverCall, plan_forms
from qspec_core._convert._rebuild import ConvertedGraphWriter
from qspec_core._convert._wide_ranges import note_wide_ranges
from qspec_core._coverage import COVERAGE_KEY
from qspec_core._errors import GraphError, SpecError
from qspec_core._qat import fold_training_form
from qspec_core._reference import to_reference
from qspec_core.graph import constant_value, gc_paused, graph_modules, observer_nodes, require_exported

__all__ = ["convert_pt2e"]


def convert_pt2e(
    model: GraphModule, use_reference_representation: bool = False, fold_quantize: bool = True
) -> GraphModule:
    """Turn a prepared and calibrated module into a quantized one.

    The prepared module is not changed, except that observers of constants observe them now, if they saw no data.
    Buffers that the graph mutates, such as a cache of keys and values, have the values from before calibration.

    Every observer becomes a quantize of its tensor and a dequantize for each reader. A constant, or an expression of
    constants, is stored as integers: only the dequantize stays in the graph. A `quantization_tag` is copied to the
    quantize of an annotated output and to the dequantize of an annotated input.

    Args:
        model: from `prepare_pt2e`, after it ran on calibration data.
        use_reference_representation: write the result in integer arithmetic of plain operators, to check what a device
            computes; see `qspec_core.passes.reference_representation_rewrite`.
        fold_quantize: store constants as integers; False keeps them in float, with their quantize in the graph.
    Returns: the quantized module, in `quantized_decomposed` operators, without float weights that nothing reads.
    Raises:
        GraphError: the model is not a graph module, was not prepared, or is converted already.
        SpecError: a flag is neither True nor False.
    Warns:
        ObserverNeverRanWarning: once, naming the points of activations that saw no data.
        WideRangeWarning: once, if static ranges of activations are far wider than the spread of the values.
    Cost: O(nodes + edges), plus quantizing each weight, one at a time.
    """
    _require_flags(use_reference_representation=use_reference_representation, fold_quantize=fold_quantize)
    _require_prepared(require_exported(model, "convert_pt2e"))
    with gc_paused(), torch.no_grad():
        model = fold_training_form(model)
        if fold_quantize:
            model = fold_observed_expressions(model)
        calls = _observer_calls(model)
        unseen = _unseen(calls)
        _observe_constants(calls, unseen)
        rest = convert_custom_observers(model, fold_quantize=fold_quantize)
        if rest is not model:
            model, calls = rest, _observer_calls(rest)
            unseen = _unseen(calls)
        observers = {call.node: call.observer for call in calls}
        plan = plan_forms(calls, unseen)
        converted = ConvertedGraphWriter(model, observers, plan, fold_quantize).run()
        note_wide_ranges(converted, calls, plan)
        return to_reference(converted) if use_reference_representation else converted


def _require_flags(**flags: object) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise SpecError(
                f"{name} of convert_pt2e takes True or False",
                found=repr(value),
                expected="True or False",
                remedy=f"pass {name}=True or {name}=False; the quantizer goes to prepare_pt2e",
            )


def _require_prepared(model: GraphModule) -> None:
    graphs = [body for _, body in graph_modules(model)]
    if any(map(observer_nodes, graphs)):
        return
    if any(ops.is_dequantize(node) for body in graphs for node in body.graph.nodes):
        raise GraphError(
            "the model is converted already",
            found="a graph with dequantize operators and no observers",
            expected="what prepare_pt2e returned",
            remedy="use the module as it is, or convert the prepared one",
        )
    if COVERAGE_KEY not in model.meta:
        raise GraphError(
            "the model was not prepared",
            found="a graph without observers",
            expected="what prepare_pt2e returned",
            remedy="prepare it with prepare_pt2e, run it on calibration data, then convert it",
        )


def _observer_calls(model: GraphModule) -> list[ObserverCall]:
    """The calls of observers, bodies included."""
    return [
        ObserverCall(f"{prefix}{node.name}", node, observer, constant_value(body, node.args[0]))
        for prefix, body in graph_modules(model)
        for node, observer in observer_nodes(body)
    ]


def _unseen(calls: Sequence[ObserverCall]) -> set[int]:
    """Identities of the observers that saw no data."""
    return {id(call.observer) for call in calls if not has_observed(call.observer)}


def _observe_constants(calls: Sequence[ObserverCall], unseen: Container[int]) -> None:
    """Run the observers that saw no data on their constants, all of them: one observer may have several."""
    for call in calls:
        if call.constant is not None and id(call.observer) in unseen:
            call.observer(call.constant)
