"""The quantizer of a pattern table: rows decide which operators are annotated, selectors decide with which specs."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Self

import torch
from torch.fx import GraphModule, Node

from qspec_core import ops
from qspec_core._coverage import decide_quantized, decide_skipped
from qspec_core._quantizer._base import Quantizer, annotate_input_qspec_map, annotate_output_qspec
from qspec_core._quantizer._config import QuantizationConfig
from qspec_core._quantizer._evaluation_form import evaluation_form
from qspec_core._quantizer._islands import choose_joins, ends_in_float_sum, tensors_of_common_range
from qspec_core._quantizer._selection import Rule, RuleKind, Selection
from qspec_core._spec import Q_ANNOTATION_KEY, QuantizationSpec, QuantizationSpecBase, SharedQuantizationSpec
from qspec_core._torch import OpOverload, OpOverloadPacket
from qspec_core.canonical import FEATURES_KEY, RECURRENT_KEY, canonicalize, expand_recurrent_layers
from qspec_core.graph import called_operator, computes_float, constant_value, graph_modules, tensor_value
from qspec_core.patterns import (
    Flow,
    Match,
    Matching,
    Mode,
    Operand,
    OtherRole,
    Outputs,
    PatternTable,
    Reason,
    ReasonCode,
    Role,
    Row,
    match_rows,
)

__all__ = ["TableQuantizer"]

_FEATURES = Reason.unsupported(
    "it reads few features of a given sequence, whose ranges may differ by orders of magnitude, and has few products"
)
"""Of a speaker encoder over power spectra (40 features, 256 hidden), 8 bits left 3 to 9 dB, and 25 to 27 without it."""
_GATES = Reason.unsupported("the gates and states of recurrent layers stay in float, which keeps them exact")


class TableQuantizer(Quantizer):
    """Annotates the matches of a table's rows, by the configuration selected for each match's anchor.

    Args:
        table: the device's rows.
        target: class of the deployment device, which the rows' `adapt` hooks are given.
    """

    def __init__(self, table: PatternTable, *, target: str = "any") -> None:
        self.table = table
        self.target = target
        self._selection = Selection()

    def set_global(self, config: QuantizationConfig | None) -> Self:
        """Configure every match that no other rule selects."""
        return self._set(RuleKind.GLOBAL, "", config)

    def set_module_name(self, name: str, config: QuantizationConfig | None) -> Self:
        """Configure the module of this path and all inside it. The path may hold `*`, `?` and `[...]`."""
        return self._set(RuleKind.MODULE_NAME, name, config)

    def set_module_type(self, module_type: type | str, config: QuantizationConfig | None) -> Self:
        """Configure modules of this class, given as the class or its qualified name, and all inside them."""
        return self._set(RuleKind.MODULE_TYPE, module_type, config)

    def set_operator_type(self, operator: OpOverload | OpOverloadPacket, config: QuantizationConfig | None) -> Self:
        """Configure the matches anchored at this operator in canonical form."""
        return self._set(RuleKind.OPERATOR_TYPE, operator, config)

    def set_filter_function(self, predicate: Callable[[Node], bool] | None) -> Self:
        """Leave in float every match for whose anchor the predicate is false."""
        self._selection.set_filter(predicate)
        return self

    def _set(self, kind: RuleKind, selector: object, config: QuantizationConfig | None) -> Self:
        self._selection.add(Rule(kind, selector, config))
        return self

    @property
    def has_configuration(self) -> bool:
        """Whether some rule asks for quantization."""
        return self._selection.has_configuration

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Expand the recurrent layers that are to be quantized, and bring the graph to canonical form."""
        self.expand_recurrent_layers(model)
        canonicalize(model)
        return model

    def expand_recurrent_layers(self, model: GraphModule) -> None:
        """Write each recurrent layer that has a configuration as linear layers and a loop, in place.

        The others stay one operator, which float kernels run faster.
        """
        modes = {mode for row in self.table.rows if row.anchor is torch.ops.aten.linear.default for mode in row.modes}

        def is_selected(node: Node) -> bool:
            chosen = self.config_of(node)
            if isinstance(chosen, QuantizationConfig) and chosen.mode not in modes:
                chosen = Reason(ReasonCode.UNSUPPORTED_MODE, f"linear layers have no {chosen.mode.value} form")
            if isinstance(chosen, QuantizationConfig) and chosen.is_qat:
                chosen = Reason.unsupported("recurrent layers train in float; quantize them after training")
            if isinstance(chosen, Reason):
                decide_skipped(node, chosen)
            return not isinstance(chosen, Reason)

        if modes:
            expand_recurrent_layers(model, is_selected)

    def config_of(self, anchor: Node) -> QuantizationConfig | Reason:
        """The configuration of a match by its anchor, or the reason why it stays in float. A subclass may change it."""
        return self._selection.choose(anchor)

    def remark_on(self, anchor: Node) -> str:
        """A remark for the coverage of a quantized match, by its anchor; "" for none. A subclass may give one."""
        return ""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate every match that has a configuration, and note on each node its row, or the reason why it has none.

        Cost: O(nodes + edges).
        """
        configs: dict[Node, QuantizationConfig] = {}

        def admit(row: Row, anchor: Node) -> Reason | None:
            chosen = self.config_of(anchor)
            if FEATURES_KEY in anchor.meta and not isinstance(chosen, Reason):
                return _FEATURES
            if RECURRENT_KEY in anchor.meta and not row.has_weight:
                return _GATES
            return None if isinstance(chosen, Reason) else _unsupported_mode(row, chosen.mode)

        def accept(match: Match) -> Reason | None:
            chosen = self.config_of(match.anchor)
            if isinstance(chosen, Reason):
                return chosen
            reason = _refusal(model, match, chosen)
            if reason is None:
                configs[match.anchor] = chosen
            return reason

        with evaluation_form(model):
            matching = match_rows(model.graph, self.table.rows, accept=accept, admit=admit)
            self._annotate_matching(model, matching, configs)
        return model

    def validate(self, model: GraphModule) -> None:
        """Check that every selector matches something in the model and the bodies in it.

        Raises: SelectorError: a selector matches nothing.
        """
        self._selection.require_matches(module for _, module in graph_modules(model))

    def _annotate_matching(
        self, model: GraphModule, matching: Matching, configs: Mapping[Node, QuantizationConfig]
    ) -> None:
        """Choose the matches that run in integers, annotate them, and note why every other operator does not."""
        starts = [match for match in matching.matches if match.row.flow is Flow.STARTS]
        # A lookup in a table of integers has no activations, and its result is float.
        static = [m for m in starts if m.row.activations and configs[m.anchor].mode is Mode.STATIC]
        candidates = [match for match in matching.matches if match.row.flow is not Flow.STARTS]
        joins, reasons = choose_joins(static, candidates, self.table.outputs)
        for match in (*starts, *joins):
            self._annotate_match(match, configs[match.anchor])
        if self.table.outputs is Outputs.DEMAND:
            _keep_ranges_apart(static, tensors_of_common_range(joins))
        self._note_skipped(model, {**matching.declined, **reasons})

    def _annotate_match(self, match: Match, config: QuantizationConfig) -> None:
        first: tuple[Node, Node] | None = None
        shares = match.row.flow is Flow.SHARES
        for node, consumer, spec in self._edges(match, config):
            if first is not None and shares and spec is config.input_activation and (node, consumer) != first:
                annotate_input_qspec_map(consumer, node, SharedQuantizationSpec(first))
            else:
                annotate_input_qspec_map(consumer, node, spec)
                first = first if first is not None else (node, consumer)
        if shares and first is not None:
            annotate_output_qspec(match.tail, SharedQuantizationSpec(first))
        elif self.table.outputs is Outputs.ALWAYS and match.row.activations and not ends_in_float_sum(match):
            annotate_output_qspec(match.tail, self._output_spec(match, config))
        activation = config.input_activation
        takes_integers = activation is not None and not activation.dtype.is_floating_point
        remark = self.remark_on(match.anchor)
        for node in match.nodes:
            decide_quantized(node, match.label, takes_integers=takes_integers, remark=remark)

    def _output_spec(self, match: Match, config: QuantizationConfig) -> QuantizationSpecBase | None:
        spec, adapt = config.output_activation, match.row.adapt_output
        return spec if spec is None or adapt is None else adapt(match.anchor, spec, self.target)

    def _edges(
        self, match: Match, config: QuantizationConfig
    ) -> Iterator[tuple[Node, Node, QuantizationSpecBase | None]]:
        """Each input edge of a match as `(producer, consumer, spec)`; edges without a spec are left out."""
        for operand, node in match.inputs():
            consumer = match.consumer(operand)
            spec = _spec_for(config, operand)
            if spec is None:
                continue
            adapted = spec if operand.adapt is None else operand.adapt(match.anchor, spec, self.target)
            yield node, consumer, adapted
        for link in match.links:
            if link.post_op.other is OtherRole.QUANTIZED and config.input_activation is not None:
                yield link.other, link.node, config.input_activation

    def _note_skipped(self, model: GraphModule, declined: dict[Node, Reason]) -> None:
        for node in model.graph.nodes:
            operator = called_operator(node)
            if operator is None:
                continue
            reason = declined.get(node, _GATES if RECURRENT_KEY in node.meta else None)
            if reason is None and operator in self.table.float_only:
                reason = Reason(ReasonCode.NO_INTEGER_KERNEL, self.table.float_only[operator])
            decide_skipped(node, reason if reason is not None else Reason(ReasonCode.NO_ROW))


def _keep_ranges_apart(starts: Iterable[Match], common: Container[Node]) -> None:
    """Give layers that share an input with a concatenation their own range: the joint range costs precision.

    The joint range may be many times as wide as that of one input. One more quantize costs less than the bits lost.

    Args:
        starts: static matches that start integers.
        common: tensors with a joint range, from `tensors_of_common_range`.
    """
    first: dict[tuple[Node, QuantizationSpecBase | None], Node] = {}
    for match in starts:
        for operand, node in match.inputs(Role.ACTIVATION, Role.ACTIVATIONS):
            if node not in common:
                continue
            consumer = match.consumer(operand)
            annotation = consumer.meta[Q_ANNOTATION_KEY]
            annotation.allow_implicit_sharing = False
            earlier = first.setdefault((node, annotation.input_qspec_map.get(node)), consumer)
            if earlier is not consumer:
                annotate_input_qspec_map(consumer, node, SharedQuantizationSpec((node, earlier)))


def _spec_for(config: QuantizationConfig, operand: Operand) -> QuantizationSpec | None:
    """The configured spec of an operand.

    A per-channel weight spec gets the channel axis of the row: a transposed convolution has its output channels in
    dimension 1.
    """
    if operand.role in (Role.ACTIVATION, Role.ACTIVATIONS):
        return config.input_activation
    if operand.role is Role.BIAS:
        return config.bias
    if operand.role is Role.CONSTANT:
        return None
    spec = config.weight
    if spec is None or spec.ch_axis is None or operand.ch_axis is None or spec.ch_axis == operand.ch_axis:
        return spec
    return replace(spec, ch_axis=operand.ch_axis)


def _unsupported_mode(row: Row, mode: Mode) -> Reason | None:
    if mode in row.modes:
        return None
    return Reason(ReasonCode.UNSUPPORTED_MODE, f"row {row.name} has no {mode.value} form")


def _refusal(model: GraphModule, match: Match, config: QuantizationConfig) -> Reason | None:
    """The reason why a match cannot have a configuration, on any device; None if it can."""
    mode = config.mode
    for pre_op, node in match.absorbed.values():
        if not pre_op.absorbs_in(mode):
            return Reason(ReasonCode.UNSUPPORTED_MODE, f"row {match.row.name} absorbs no {node.name} when {mode.value}")
    if match.anchor.meta.get(Q_ANNOTATION_KEY) is not None:
        return Reason(ReasonCode.ALREADY_QUANTIZED, "annotated before")
    for operand, node in match.inputs(Role.ACTIVATION, Role.ACTIVATIONS):
        value = tensor_value(node)
        if value is None or not value.is_floating_point():
            return Reason(ReasonCode.NOT_FLOATING_POINT, f"operand {operand.name}")
        if value.dtype is torch.float64:
            detail = f"operand {operand.name} is torch.float64, which the quantize operators do not take"
            return Reason.unsupported(detail)
    for operand in match.row.operands:
        spec = _spec_for(config, operand)
        refusal = operand.refuses(match.anchor, spec) if operand.refuses is not None and spec is not None else None
        if refusal is not None:
            return refusal
        if operand.role not in (Role.WEIGHT, Role.CONSTANT):
            continue
        if ops.is_dequantize(match.operand(operand.name)):
            return Reason(ReasonCode.ALREADY_QUANTIZED, f"operand {operand.name} is dequantized from integers")
        if constant_value(model, match.operand(operand.name)) is None:
            return Reason.unsupported(f"operand {operand.name} is computed, not a constant")
    if match.row.has_weight or mode is not Mode.WEIGHT_ONLY:
        return None if computes_float(match.anchor) else Reason(ReasonCode.NOT_FLOATING_POINT)
    return Reason(ReasonCode.UNSUPPORTED_MODE, "there is no weight to quantize")
