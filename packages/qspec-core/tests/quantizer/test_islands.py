"""Islands of integers: the joining and sharing rows that are chosen, and the outputs that carry a spec."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_support import (
    ACT,
    ADD_ROW,
    CONFIG,
    CONV2D,
    DYNAMIC,
    FLOAT_ADD,
    LINEAR,
    ROWS,
    WEIGHT,
    WEIGHT_ONLY,
    Net,
    aten,
    calls,
    export,
    quantizer,
    table,
)
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core import (
    Q_ANNOTATION_KEY,
    AnnotationError,
    Coverage,
    NothingQuantizedError,
    QuantizationAnnotation,
    QuantizationSpec,
    SharedQuantizationSpec,
    TableQuantizer,
    coverage,
    prepare_pt2e,
)
from qspec_core.patterns import Flow, Outputs, PreOp, activation, bias, weight

X = (2, 4, 8, 8)


def conv(inputs: int = 4, outputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Annotated:
    """The annotated copy of a model."""

    def __init__(self, function: Any, *inputs: Tensor, q: TableQuantizer | None = None, **parts: nn.Module) -> None:
        exported = export(Net(function, **parts), *inputs)
        self.module = prepare_pt2e(exported, quantizer() if q is None else q)
        self.coverage: Coverage = coverage(self.module)

    def status(self, target: Any) -> list[str]:
        """Row or reason of each call of an operator."""
        return [entry.row or entry.reason for entry in self.coverage if entry.operator == str(target)]

    def node(self, target: Any, index: int = 0) -> Node:
        return calls(self.module, target)[index]

    def output(self, target: Any, index: int = 0) -> object:
        annotation = self.node(target, index).meta.get(Q_ANNOTATION_KEY, QuantizationAnnotation())
        return annotation.output_qspec

    def inputs(self, target: Any, index: int = 0) -> list[object]:
        annotation = self.node(target, index).meta.get(Q_ANNOTATION_KEY, QuantizationAnnotation())
        return list(annotation.input_qspec_map.values())


def test_sharing_operator_between_integer_readers_shares() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.b(F.max_pool2d(m.a(x), 2))  # type: ignore[no-any-return]  # submodules by name

    found = Annotated(forward, torch.randn(X), a=conv(), b=conv())
    assert found.status(aten.max_pool2d.default) == ["max_pool2d"]
    pool = found.node(aten.max_pool2d.default)
    first = found.node(aten.conv2d.default)
    assert found.inputs(aten.max_pool2d.default) == [ACT]
    assert found.output(aten.max_pool2d.default) == SharedQuantizationSpec((first, pool))


def test_sharing_operator_at_the_end_has_no_integer_reader() -> None:
    found = Annotated(lambda m, x: F.max_pool2d(m.a(x), 2), torch.randn(X), a=conv())
    assert found.status(aten.max_pool2d.default) == ["no integer reader: nothing that reads it takes integers"]
    always = Annotated(
        lambda m, x: F.max_pool2d(m.a(x), 2), torch.randn(X), a=conv(), q=quantizer(outputs=Outputs.ALWAYS)
    )
    assert always.status(aten.max_pool2d.default) == ["max_pool2d"]


def test_island_after_another_sharing_operator_needs_the_reader_at_its_end() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.max_pool2d(m.a(x), 2)
        return F.pad(y, (0, 1, 0, 1)) if m.last is None else m.last(F.pad(y, (0, 1, 0, 1)))

    found = Annotated(forward, torch.randn(X), a=conv(), last=conv())
    assert found.status(aten.max_pool2d.default) + found.status(aten.pad.default) == ["max_pool2d", "pad"]
    found = Annotated(forward, torch.randn(X), a=conv(), last=None)  # type: ignore[arg-type]  # no last layer
    assert [reason.split(":")[0] for reason in found.status(aten.max_pool2d.default)] == ["no integer reader"]


def test_cat_shares_one_group_over_all_its_inputs() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.c(torch.cat([m.a(x), m.b(x)], 1))  # type: ignore[no-any-return]  # as above

    found = Annotated(forward, torch.randn(X), a=conv(), b=conv(), c=conv(8))
    assert found.status(aten.cat.default) == ["cat"]
    cat = found.node(aten.cat.default)
    a, _, _ = calls(found.module, aten.conv2d.default)
    assert found.inputs(aten.cat.default) == [ACT, SharedQuantizationSpec((a, cat))]
    assert found.output(aten.cat.default) == SharedQuantizationSpec((a, cat))


@pytest.mark.parametrize("outputs", [Outputs.DEMAND, Outputs.ALWAYS])
@pytest.mark.parametrize("is_pooled", [False, True])
def test_layers_beside_a_cat_have_a_range_of_their_own_where_it_costs_no_second_rounding(
    outputs: Outputs, *, is_pooled: bool
) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.max_pool2d(m.a(x), 2) if is_pooled else m.a(x)
        return m.d(torch.cat([y, m.b(y), m.c(y)], 1))  # type: ignore[no-any-return]  # as above

    found = Annotated(forward, torch.randn(X), a=conv(), b=conv(), c=conv(), d=conv(12), q=quantizer(outputs=outputs))
    _, b, c, d = calls(found.module, aten.conv2d.default)
    cat = found.node(aten.cat.default)
    ranges = {node.all_input_nodes[0].target for node in (b, c)}
    common = {node.target for node in (*cat.all_input_nodes, d.all_input_nodes[0])}
    observers = [{id(found.module.get_submodule(str(name))) for name in names} for names in (ranges, common)]
    assert [len(some) for some in observers] == [1, 1]
    assert (observers[0] != observers[1]) == (outputs is Outputs.DEMAND and not is_pooled)


def test_a_range_beside_a_cat_is_that_of_its_tensor() -> None:
    """One input of the cat is a hundred times as large; the layer beside it loses nothing by that."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.c(torch.cat([y, m.b(y)], 1)) + m.d(y)  # type: ignore[no-any-return]  # as above

    first, large = conv(), conv()
    large.weight.data.mul_(100.0)
    found = Annotated(forward, torch.randn(X), a=first, b=large, c=conv(8), d=conv())
    assert found.status(aten.cat.default) == ["cat"]
    found.module(torch.randn(X))
    d = found.node(aten.conv2d.default, 3)
    scale, _ = found.module.get_submodule(str(d.args[0].target)).calculate_qparams()  # type: ignore[union-attr, operator]
    values = first(torch.randn(X))
    assert scale.item() < 2.0 * (values.max() - values.min()).item() / 255.0


def test_cat_with_a_float_input_stays_in_float() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.c(torch.cat([m.a(x), torch.tanh(x)], 1))  # type: ignore[no-any-return]  # as above

    found = Annotated(forward, torch.randn(X), a=conv(), c=conv(8))
    (reason,) = found.status(aten.cat.default)
    assert reason.startswith("input not quantized: not every input is integer:")
    assert "tanh" in reason
    assert found.status(aten.tanh.default) == ["no row"]


def test_quantize_moves_before_a_pad_after_a_float_producer() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.a(F.pad(torch.tanh(x), (0, 1, 0, 1)))  # type: ignore[no-any-return]  # as above

    found = Annotated(forward, torch.randn(X), a=conv())
    assert found.status(aten.pad.default) == ["pad"]


def test_quantize_does_not_rise_above_a_pad_with_two_readers() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.pad(torch.tanh(x), (0, 1, 0, 1))
        return m.a(y) + y  # type: ignore[no-any-return]  # as above

    (reason,) = Annotated(forward, torch.randn(X), a=conv()).status(aten.pad.default)
    assert reason.startswith("input not quantized")


@pytest.mark.parametrize("outputs", [Outputs.DEMAND, Outputs.ALWAYS])
def test_quantize_does_not_rise_above_the_choice_of_a_part(outputs: Outputs) -> None:
    """The token that is classified is a hundredth of the largest: its range is its own."""
    x = torch.cat([torch.rand(2, 1, 4), 100.0 * torch.rand(2, 7, 4)], dim=1)

    def of_floats(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.relu(x)[:, 0])  # type: ignore[no-any-return]  # as above

    def of_integers(m: Any, x: Tensor) -> Tensor:
        return m.head(m.first(x)[:, 0])  # type: ignore[no-any-return]  # as above

    found = Annotated(of_floats, x, head=nn.Linear(4, 4), q=quantizer(outputs=outputs))
    assert found.status(aten.select.int)[0].startswith("input not quantized")
    found.module(x)
    quantized = found.node(aten.linear.default).args[0]
    scale, _ = found.module.get_submodule(str(quantized.target)).calculate_qparams()  # type: ignore[union-attr, operator]
    assert scale.item() <= 1.0 / 255.0
    always = quantizer(outputs=Outputs.ALWAYS)
    found = Annotated(of_integers, x, first=nn.Linear(4, 4), head=nn.Linear(4, 4), q=always)
    assert found.status(aten.select.int) == ["select"]


def test_sum_joins_where_both_sides_are_integers() -> None:
    def both(m: Any, x: Tensor) -> Tensor:
        y, z = m.a(x), m.b(x)
        return m.c(F.relu(F.max_pool2d(y, 1) + F.max_pool2d(z, 1)))  # type: ignore[no-any-return]  # as above

    def one(m: Any, x: Tensor) -> Tensor:
        return m.c(F.relu(F.max_pool2d(m.a(x), 1) + torch.tanh(m.b(x))))  # type: ignore[no-any-return]  # as above

    found = Annotated(both, torch.randn(X), a=conv(), b=conv(), c=conv())
    assert found.status(aten.add.Tensor) == ["add + relu"]
    assert found.status(aten.relu.default) == ["add + relu"]
    assert found.output(aten.relu.default) is None  # on demand: the reader's edge carries the spec
    assert found.inputs(aten.add.Tensor) == [ACT, ACT]
    found = Annotated(one, torch.randn(X), a=conv(), b=conv(), c=conv())
    (reason,) = found.status(aten.add.Tensor)
    assert reason.startswith("input not quantized")


def test_outputs_always_are_annotated_at_the_tail() -> None:
    q = quantizer(outputs=Outputs.ALWAYS)
    found = Annotated(lambda m, x: F.relu(m.a(x)), torch.randn(X), a=conv(), q=q)
    assert found.output(aten.relu.default) == ACT
    assert found.output(aten.conv2d.default) is None
    assert Annotated(lambda m, x: F.relu(m.a(x)), torch.randn(X), a=conv()).output(aten.relu.default) is None


@pytest.mark.parametrize("outputs", list(Outputs))
def test_float_sum_chain_is_never_annotated_at_its_output(outputs: Outputs) -> None:
    row = replace(CONV2D, chains=((FLOAT_ADD,), ()))
    q = TableQuantizer(table((row, *ROWS[1:]), outputs)).set_global(CONFIG)

    def forward(m: Any, x: Tensor) -> Tensor:
        return F.max_pool2d(m.a(x) + torch.tanh(x), 2)

    found = Annotated(forward, torch.randn(X), a=conv(), q=q)
    assert found.status(aten.add.Tensor) == ["conv2d + add"]
    assert found.output(aten.add.Tensor) is None
    assert len(found.inputs(aten.add.Tensor)) == 0  # the other operand stays in float
    assert found.status(aten.max_pool2d.default)[0].startswith("input not quantized")


def test_quantized_residual_operand_carries_the_activation_spec() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.b(m.a(x) + torch.tanh(x))  # type: ignore[no-any-return]  # as above

    found = Annotated(forward, torch.randn(X), a=conv(), b=conv())
    assert found.status(aten.add.Tensor) == ["conv2d + add"]
    assert found.inputs(aten.add.Tensor) == [ACT]


def test_absorbed_pad_takes_the_edge() -> None:
    operand = activation("input", absorbs=(PreOp(aten.pad.default),))
    row = replace(CONV2D, operands=(operand, *CONV2D.operands[1:]))
    q = TableQuantizer(table((row,))).set_global(CONFIG)
    found = Annotated(lambda m, x: m.a(F.pad(x, (0, 1, 0, 1))), torch.randn(X), a=conv(), q=q)
    assert found.inputs(aten.pad.default) == [ACT]
    assert found.inputs(aten.conv2d.default) == [WEIGHT]
    assert found.status(aten.pad.default) == ["conv2d"]


def halve(node: Node, spec: QuantizationSpec, target: str) -> QuantizationSpec:
    return replace(spec, quant_min=-64, quant_max=63) if target == "small" else spec


def test_narrow_weights_only_where_the_target_needs_them() -> None:
    operands = (CONV2D.operands[0], replace(CONV2D.operands[1], adapt=halve), CONV2D.operands[2])
    rows = table((replace(CONV2D, operands=operands),))
    for target, want in (("any", WEIGHT), ("small", replace(WEIGHT, quant_min=-64, quant_max=63))):
        q = TableQuantizer(rows, target=target).set_global(CONFIG)
        found = Annotated(lambda m, x: m.a(x), torch.randn(X), a=conv(), q=q)
        assert found.inputs(aten.conv2d.default) == [ACT, want]


def test_adapted_specs_of_activations_on_every_target() -> None:
    def shrink(node: Node, spec: QuantizationSpec, target: str) -> QuantizationSpec:
        return replace(spec, quant_min=0, quant_max=127)

    operands = (replace(CONV2D.operands[0], adapt=shrink), *CONV2D.operands[1:])
    q = TableQuantizer(table((replace(CONV2D, operands=operands),))).set_global(CONFIG)
    found = Annotated(lambda m, x: m.a(x), torch.randn(X), a=conv(), q=q)
    assert found.inputs(aten.conv2d.default) == [replace(ACT, quant_min=0, quant_max=127), WEIGHT]


def test_scales_lie_along_the_channels_of_the_row() -> None:
    operands = (activation("input"), weight("weight", ch_axis=1), bias("bias"))
    rows = table((replace(CONV2D, anchor=aten.conv_transpose2d.input, operands=operands),))
    q = TableQuantizer(rows).set_global(CONFIG)
    found = Annotated(lambda m, x: m.a(x), torch.randn(X), a=nn.ConvTranspose2d(4, 3, 2), q=q)
    assert WEIGHT.ch_axis == 0
    assert found.inputs(aten.conv_transpose2d.input) == [ACT, replace(WEIGHT, ch_axis=1)]


def test_bias_spec_is_put_on_the_bias() -> None:
    spec = QuantizationSpec(torch.int32, ACT.observer_or_fake_quant_ctr, qscheme=torch.per_tensor_symmetric)
    q = quantizer(replace(CONFIG, bias=spec))
    found = Annotated(lambda m, x: m.a(x), torch.randn(X), a=conv(), q=q)
    assert found.inputs(aten.conv2d.default) == [ACT, WEIGHT, spec]


def test_modes_that_a_row_lacks_are_a_reason() -> None:
    static = replace(LINEAR, modes=frozenset({next(iter(ADD_ROW.modes))}))
    for config, mode in ((DYNAMIC, "dynamic"), (WEIGHT_ONLY, "weight only")):
        q = TableQuantizer(table((static,))).set_global(config)
        with pytest.raises(NothingQuantizedError, match=f"row linear has no {mode} form"):
            Annotated(lambda m, x: m.a(x), torch.randn(2, 4), a=nn.Linear(4, 4), q=q)


def test_weight_only_of_a_row_without_weight_is_a_reason() -> None:
    rows = table((LINEAR, replace(ADD_ROW, modes=LINEAR.modes, flow=Flow.STARTS)))
    q = TableQuantizer(rows).set_global(WEIGHT_ONLY)
    found = Annotated(lambda m, x: torch.tanh(m.a(x)) + x, torch.randn(2, 4), a=nn.Linear(4, 4), q=q)
    assert found.status(aten.add.Tensor) == ["unsupported mode: there is no weight to quantize"]
    assert found.inputs(aten.linear.default) == [WEIGHT]


def test_dynamic_layers_start_no_island() -> None:
    found = Annotated(
        lambda m, x: m.b(F.max_pool2d(m.a(x), 2)), torch.randn(X), a=conv(), b=conv(), q=quantizer(DYNAMIC)
    )
    assert found.status(aten.max_pool2d.default) == ["unsupported mode: row max_pool2d has no dynamic form"]


def test_integers_and_computed_weights_are_reasons() -> None:
    def forward(m: Any, x: Tensor, w: Tensor) -> Tensor:
        return F.linear(m.a(x), w) + (x > 0).long() + (x.long() + x.long())

    found = Annotated(forward, torch.randn(2, 4), torch.randn(4, 4), a=nn.Linear(4, 4))
    assert found.status(aten.linear.default) == [
        "linear",
        "unsupported argument: operand weight is computed, not a constant",
    ]
    reasons = found.status(aten.add.Tensor)
    assert len(reasons) == 2  # the third sum is of integers, so it is no floating-point operator
    assert reasons[0] == "not floating point: operand other"


def test_float_only_operators_quote_the_device() -> None:
    q = TableQuantizer(table(float_only={aten.tanh.default: "no table lookup"})).set_global(CONFIG)
    found = Annotated(lambda m, x: torch.tanh(m.a(x)), torch.randn(2, 4), a=nn.Linear(4, 4), q=q)
    assert found.status(aten.tanh.default) == ["no integer kernel: no table lookup"]


def test_layer_annotated_before_is_kept_and_reported() -> None:
    class Two(TableQuantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            first, _ = calls(model, aten.linear.default)
            source = first.all_input_nodes[0]
            first.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({source: ACT})
            return super().annotate(model)

    q = Two(table()).set_global(CONFIG)
    found = Annotated(lambda m, x: m.b(m.a(x)), torch.randn(2, 4), a=nn.Linear(4, 4), b=nn.Linear(4, 4), q=q)
    assert found.status(aten.linear.default) == ["annotation of Two", "linear"]
    assert found.inputs(aten.linear.default) == [ACT]


def test_annotated_integer_input_is_refused() -> None:
    class Wrong(TableQuantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            (node,) = calls(model, aten.embedding.default)
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({node.all_input_nodes[1]: ACT})
            return model

    exported = export(nn.Embedding(5, 3), torch.tensor([1, 2]))
    with pytest.raises(AnnotationError, match="is not a floating-point tensor") as caught:
        prepare_pt2e(exported, Wrong(table()))
    assert caught.value.where.node == calls(exported)[0].name
