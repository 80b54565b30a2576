"""Rows found again in converted graphs, and the tools with which they rewrite them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_support import (
    ACT,
    CONFIG,
    CONV2D,
    DYNAMIC,
    FLOAT_ADD,
    LINEAR,
    ROWS,
    Frozen,
    Net,
    aten,
    calls,
    export,
    quantized,
    quantizer,
    table,
    targets,
)
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import LoweringError, TableQuantizer, convert_pt2e, coverage, ops, prepare_pt2e
from qspec_core.graph import copy_graph_module
from qspec_core.lowering import Lowering, lower_rows, match_converted, quantized_operand, quantized_value
from qspec_core.patterns import DELEGATED, Flow, Match, Mode, Note, Reason, Row, activation, constant, match_rows

X = torch.randn(4, 4)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh())


def lower_linear(match: Match, context: Lowering[str]) -> Reason | None:
    """An integer product of float64 numbers: exact, and as slow as a reference may be."""
    x, w = quantized_operand(match, "input"), quantized_operand(match, "weight")
    if context.options == "decline":
        return Reason.unsupported("told to")
    tail, before = match.tail, match.tail
    assert isinstance(x.scale, float)
    scale = context.tensor(w.scale).double() * x.scale
    exact = context.call(before, aten.to.dtype, x.integers, torch.float64)
    wide = context.call(before, aten.sub.Tensor, exact, x.zero_point)
    weight = context.constant("packed", context.tensor(w.integers).double() * scale[:, None], before)
    bias = context.constant("bias", context.tensor(match.operand("bias")).double(), before)
    total = context.call(before, aten.linear.default, wide, weight, bias)
    if match.links:
        total = context.call(before, aten.relu.default, total)
    result = context.call(before, aten.to.dtype, total, torch.float32, like=tail)
    tail.replace_all_uses_with(result)
    return None


LOWERED = table((replace(LINEAR, lower=lower_linear),))


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 4)], ids=str)
def test_decomposed_graph_lowers_alike(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))
    converted = quantized(export(model, x), (x,))
    decomposed = torch.export.export(converted, (x,)).run_decompositions().module()
    assert isinstance(decomposed, torch.fx.GraphModule)
    assert "aten.linear.default" not in targets(decomposed)
    result = lower_rows(decomposed, LOWERED, target="any")
    assert list(result.lowered.values()) == ["linear", "linear"]
    torch.testing.assert_close(result.module(x), converted(x), rtol=1e-6, atol=1e-6)


def test_lowered_module_computes_what_the_converted_one_does() -> None:
    converted = quantized(export(network(), X), (X,))
    frozen = Frozen(converted)
    result = lower_rows(converted, LOWERED, target="any")
    assert list(result.lowered.values()) == ["linear + relu", "linear"]
    assert result.declined == {}
    torch.testing.assert_close(result.module(X), converted(X), rtol=1e-6, atol=1e-6)
    assert "quantized_decomposed.dequantize_per_channel.default" not in targets(result.module)
    assert not [name for name in result.module.state_dict() if "frozen" in name]
    frozen.check()


def test_declined_rows_are_reported_and_left_in_place() -> None:
    converted = quantized(export(network(), X), (X,))
    result = lower_rows(converted, LOWERED, target="any", options="decline")
    assert [str(reason) for reason in result.declined.values()] == ["unsupported argument: told to"] * 2
    assert torch.equal(result.module(X), converted(X))


def test_notes_of_rows_are_reported_beside_what_they_lowered() -> None:
    def lower(match: Match, context: Lowering[str]) -> Reason | Note | None:
        reason = lower_linear(match, context)
        return Note("wide") if reason is None and not match.links else reason

    converted = quantized(export(network(), X), (X,))
    result = lower_rows(converted, table((replace(LINEAR, lower=lower),)), target="any", options="")
    assert list(result.lowered.values()) == ["linear + relu", "linear"]
    assert list(result.notes) == list(result.lowered)[1:]
    assert [note.text for note in result.notes.values()] == ["wide"]


SLOPE = Row("prelu", aten.prelu.default, (activation("self"), constant("weight")), Flow.JOINS, DELEGATED)


def with_slope() -> TableQuantizer:
    return TableQuantizer(table((LINEAR, SLOPE))).set_global(CONFIG)


def test_float_constants_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 4))
    prepared = prepare_pt2e(export(model, X), with_slope())
    prepared(X)
    converted = convert_pt2e(prepared)
    (match,) = (m for m in match_converted(converted, table((LINEAR, SLOPE))) if m.row is SLOPE)
    slope = Lowering(converted, "any", None).tensor(match.operand("weight"))
    assert slope.tolist() == [0.25]
    assert slope.dtype is torch.float32


def test_float_constant_that_is_computed_declines_the_row() -> None:
    def net(m: Any, x: Tensor) -> Any:
        return m.b(torch.nn.functional.prelu(m.a(x), x.mean().reshape(1)))

    exported = export(Net(net, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), X)
    (entry,) = (e for e in coverage(prepare_pt2e(exported, with_slope())) if "prelu" in e.operator)
    assert entry.reason == "unsupported argument: operand weight is computed, not a constant"


def test_delegated_rows_are_left_for_the_device() -> None:
    converted = quantized(export(network(), X), (X,))
    result = lower_rows(converted, table(), target="any")
    assert (result.lowered, result.declined) == ({}, {})
    assert targets(result.module) == targets(converted)


def test_rows_that_annotated_are_found_again_after_export_and_in_copies() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.a(x))
        y = F.max_pool2d(m.b(y) + y, 2)
        return m.c(torch.cat([y, m.d(y)], 1))  # type: ignore[no-any-return]  # submodules by name

    convs = {name: nn.Conv2d(inputs, 4, 3, padding=1) for name, inputs in (("a", 3), ("b", 4), ("c", 8), ("d", 4))}
    x = torch.randn(1, 3, 8, 8)
    converted = quantized(export(Net(forward, **convs), x), (x,))
    wanted = sorted({(e.row) for e in coverage(converted).quantized})
    again = torch.export.export(converted, (x,)).module()
    assert isinstance(again, GraphModule)
    for module in (converted, again):
        found = match_converted(module, table())
        assert sorted({match.label for match in found}) == wanted
        assert len(found) == 6
    assert wanted == ["cat", "conv2d", "conv2d + add", "conv2d + relu", "max_pool2d"]


def test_float_layers_are_not_found() -> None:
    x = torch.randn(4, 4)
    model = Net(lambda m, x: m.b(torch.tanh(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    from_quantizer = quantizer().set_module_name("a", None)

    prepared = prepare_pt2e(export(model, x), from_quantizer)
    prepared(x)
    (match,) = match_converted(convert_pt2e(prepared), table())
    assert match.row is LINEAR
    assert match.anchor.meta["nn_module_stack"]


@pytest.mark.parametrize("is_float", [True, False])
def test_second_operand_must_be_what_the_chain_says(is_float: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.b(m.a(x) + torch.tanh(x))  # type: ignore[no-any-return]  # as above

    model = Net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    converted = quantized(export(model, X), (X,))  # the second operand is quantized
    chain = (FLOAT_ADD,) if is_float else LINEAR.chains[1]
    labels = [match.label for match in match_converted(converted, table((replace(LINEAR, chains=(chain, ())),)))]
    assert labels == (["linear", "linear"] if is_float else ["linear + add", "linear"])


def test_chain_with_a_float_operand_is_found_where_it_is_float() -> None:
    row = replace(LINEAR, chains=((FLOAT_ADD,), ()))
    model = Net(lambda m, x: m.a(x) + torch.tanh(x), a=nn.Linear(4, 4))
    rows = table((row,))

    prepared = prepare_pt2e(export(model, X), TableQuantizer(rows).set_global(CONFIG))
    prepared(X)
    converted = convert_pt2e(prepared)
    (match,) = match_converted(converted, rows)
    assert match.label == "linear + add"
    assert match_converted(converted, table((replace(LINEAR, chains=(LINEAR.chains[1],)),))) == ()


def test_values_are_read_from_every_form_of_quantize_and_dequantize() -> None:
    linear = nn.Linear(4, 3)
    static = quantized(export(linear, X), (X,))
    dynamic = quantized(export(linear, X), (X,), config=DYNAMIC)
    (dq,) = calls(static, ops.DEQUANTIZE)
    (q,) = calls(static, ops.QUANTIZE)
    (weight,) = calls(static, ops.DEQUANTIZE_PER_CHANNEL)
    (run,) = calls(dynamic, ops.DEQUANTIZE_DYNAMIC)
    read = [quantized_value(node) for node in (dq, q, weight, run)]
    first, second, third, fourth = (value for value in read if value is not None)
    assert first.integers is q
    assert second.integers is q
    assert first.parameters == second.parameters
    assert (first.quant_min, first.quant_max, first.dtype, first.ch_axis) == (0, 255, torch.uint8, None)
    assert isinstance(first.scale, float)
    assert (third.ch_axis, third.dtype) == (0, torch.int8)
    assert [value.is_dynamic for value in (first, second, third, fourth)] == [False, False, False, True]
    assert third.scale.op == "get_attr"  # type: ignore[union-attr]  # a node
    for other in (calls(static, aten.linear.default)[0], None, 3):
        assert quantized_value(other) is None


def test_operand_that_is_float_is_named() -> None:
    exported = export(nn.Linear(4, 4), X)
    (match,) = match_rows(exported.graph, (LINEAR,)).matches
    with pytest.raises(LoweringError, match="operand 'input' of row linear is not dequantized") as caught:
        quantized_operand(match, "input")
    assert caught.value.where.node == match.anchor.name


def context_of(converted: GraphModule) -> Lowering[None]:
    return Lowering(copy_graph_module(converted), "any", None)


def test_requantize_needs_all_readers_to_quantize_alike() -> None:
    def readers(function: Any, wide: bool = False) -> tuple[Lowering[None], Any]:  # a node
        parts = {name: nn.Linear(4, 4) for name in "abc"}
        exported = export(Net(function, **parts), X)
        chosen = quantizer()
        if wide:
            chosen.set_module_name("c", replace(CONFIG, input_activation=replace(ACT, quant_max=127)))

        prepared = prepare_pt2e(exported, chosen)
        prepared(X)
        context = context_of(convert_pt2e(prepared))
        return context, calls(context.module, aten.linear.default)[0]

    def both(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.a(x)
        return m.b(y), m.c(y)

    def also_float(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.a(x)
        return m.b(y), torch.tanh(y)

    context, tail = readers(both)
    found = context.requantize(tail)
    assert found is not None
    assert ops.is_quantize(found.node)
    assert all(ops.is_quantize(user) for user in tail.users)
    integers = context.call(found.node, aten.relu.default, tail, like=tail)
    tail_readers = [reader for user in tail.users if user is not integers for reader in user.users]
    integers.replace_input_with(tail, calls(context.module)[0])
    context.replace_quantizes(tail, integers)
    assert len(tail.users) == 0
    assert all(integers in reader.all_input_nodes for reader in tail_readers)
    assert context.requantize(readers(also_float)[1]) is None
    assert context.requantize(readers(both, wide=True)[1]) is None
    assert context.requantize(readers(lambda m, x: m.a(x))[1]) is None


def test_constants_of_a_context() -> None:
    context = context_of(quantized(export(nn.Linear(4, 4), X), (X,)))
    (linear,) = calls(context.module, aten.linear.default)
    assert context.tensor(linear.args[2]).shape == (4,)
    with pytest.raises(LoweringError, match="a constant was expected") as caught:
        context.tensor(linear)
    assert caught.value.where.node == "linear"
    with pytest.raises(LoweringError, match="a constant was expected"):
        context.tensor(3)


def test_in_place_sums_of_a_foreign_converted_graph_are_found() -> None:
    """Lowering brings the graph to canonical form first, so that graphs of other stacks are found too."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.b(F.relu_(m.a(x)).add_(x))  # type: ignore[no-any-return]  # as above

    model = Net(forward, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1))
    x = torch.randn(1, 3, 4, 4)
    exported = export(model, x)
    names: list[str] = []

    def see(match: Match, _: Lowering[None]) -> None:
        names.append(match.label)

    converted = quantized(exported, (x,))
    (relu,) = calls(converted, aten.relu.default)
    relu.target = aten.relu_.default
    converted.recompile()
    lower_rows(converted, table((replace(CONV2D, lower=see), *ROWS[1:])), target="any")
    assert names == ["conv2d + relu", "conv2d"]
    assert relu.target is aten.relu_.default


WEIGHT_CONFIG = replace(CONFIG, input_activation=None, output_activation=None)
WEIGHT_ROW = replace(LINEAR, name="weight", chains=((),), modes=frozenset({Mode.WEIGHT_ONLY}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_weight_only_row_takes_float_activations_and_no_other_row_does(dtype: torch.dtype) -> None:
    rows = table((LINEAR, WEIGHT_ROW))
    prepared = prepare_pt2e(
        export(network().to(dtype), X.to(dtype)), TableQuantizer(rows).set_global(WEIGHT_CONFIG), allow_empty=True
    )
    converted = convert_pt2e(prepared)
    assert [match.label for match in match_converted(converted, rows)] == ["weight", "weight"]
    assert match_converted(converted, table((LINEAR,))) == ()
    assert converted(X.to(dtype)).dtype is dtype  # the dequantize gives the dtype that its reader takes


def test_a_row_of_another_mode_does_not_hide_why_one_of_this_mode_declined() -> None:
    def refuses(_: object) -> Reason:
        return Reason.unsupported("too small")

    refusing, static = replace(WEIGHT_ROW, checks=(refuses,)), replace(LINEAR, modes=frozenset({Mode.STATIC}))
    for rows in ((refusing, static), (static, refusing)):
        chosen = TableQuantizer(table(rows)).set_global(WEIGHT_CONFIG)
        found = coverage(prepare_pt2e(export(network(), X), chosen, allow_empty=True))
        assert {entry.detail for entry in found if entry.is_layer} == {"too small"}
