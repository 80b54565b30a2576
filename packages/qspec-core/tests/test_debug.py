"""Numeric debugging: measures against plain torch, worst layers first, handles that survive every step."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from core_support import CONFIG, WEIGHT, Frozen, Net, aten, calls, export, quantized, quantizer, settled, sqnr, table
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import CalibrationError, GraphError, TableQuantizer, convert_pt2e, prepare_pt2e
from qspec_core.debug import (
    NUMERIC_DEBUG_HANDLE_KEY,
    Comparison,
    NodeComparison,
    NodeSourceDebugInfo,
    OutputLogger,
    QuantizationComparisonResult,
    compare,
    compare_results,
    extract_results_from_loggers,
    generate_numeric_debug_handle,
    prepare_for_propagation_comparison,
)

X = torch.randn(4, 3, 6, 6)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(64, 5)
    model = nn.Sequential(*layers)
    settled(model)
    return model


@pytest.fixture(scope="module", name="exported")
def _exported() -> GraphModule:
    return export(network(), X)


@pytest.fixture(scope="module", name="converted")
def _converted(exported: GraphModule) -> GraphModule:
    return quantized(exported, (X,))


def test_measures_equal_those_of_the_outputs(exported: GraphModule, converted: GraphModule) -> None:
    batches = [torch.randn(4, 3, 6, 6) for _ in range(3)]
    last = compare(exported, converted, [(x,) for x in batches]).nodes[-1]
    with torch.no_grad():
        want = torch.cat([exported(x) for x in batches])
        found = torch.cat([converted(x) for x in batches])
    assert (last.node, last.operator, last.module) == ("linear", "aten.linear.default", "5")
    assert last.sqnr == pytest.approx(sqnr(want, found), rel=1e-6)
    assert last.max_error == float((want.double() - found.double()).abs().max())
    assert last.cosine == pytest.approx(float(torch.cosine_similarity(want.flatten(), found.flatten(), 0)), rel=1e-5)


def test_folded_batch_norm_is_compared_with_its_layer(exported: GraphModule, converted: GraphModule) -> None:
    found = {entry.node: entry for entry in compare(exported, converted, [(X,)]).nodes}
    assert found["conv2d"].float_node == "batch_norm"
    assert found["conv2d"].sqnr > 25
    assert found["relu"].float_node == "dropout"


def test_worst_layer_comes_first() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    x = torch.randn(16, 8)
    coarse = replace(CONFIG, weight=replace(WEIGHT, quant_min=-2, quant_max=1))
    q = TableQuantizer(table()).set_global(CONFIG).set_module_name("1", coarse)
    exported = export(model, x)
    prepared = prepare_pt2e(exported, q)
    prepared(x)
    result = compare(exported, convert_pt2e(prepared), [(x,)])
    assert [entry.module for entry in result.nodes] == ["0", "1", "2"]
    assert result.worst(1)[0].module == "1"
    assert [entry.sqnr for entry in result.worst()] == sorted(entry.sqnr for entry in result.nodes)
    lines = result.table().splitlines()
    assert lines[0].split() == ["node", "operator", "module", "SQNR", "dB", "max", "error", "cosine"]
    assert lines[1].startswith("linear_1 ")
    assert len(result.table(1).splitlines()) == 2
    assert str(result) == result.table(10)


def test_programs_that_agree_bit_for_bit(exported: GraphModule) -> None:
    result = compare(exported, exported, [(X,)])
    assert all((e.sqnr, e.max_error) == (math.inf, 0.0) for e in result.nodes)
    assert [e.cosine for e in result.nodes] == pytest.approx([1.0] * len(result.nodes))


def test_outputs_of_zeros() -> None:
    def one(module: Any, x: Tensor) -> Tensor:  # a buffer by name
        return x * module.factor  # type: ignore[no-any-return]  # as above

    x = torch.ones(3)
    zero, two = (export(Net(one, factor=torch.tensor(value)), x) for value in (0.0, 2.0))
    (silent,) = compare(zero, two, [(x,)]).nodes
    assert (silent.sqnr, silent.cosine, silent.max_error) == (-math.inf, 0.0, 2.0)
    (both,) = compare(zero, zero, [(x,)]).nodes
    assert (both.sqnr, both.cosine) == (math.inf, 1.0)


def test_neither_program_is_changed(exported: GraphModule, converted: GraphModule) -> None:
    frozen = Frozen(exported), Frozen(converted)
    compare(exported, converted, [(X,)])
    for one in frozen:
        one.check()


def test_programs_without_common_operators_or_batches_are_refused(
    exported: GraphModule, converted: GraphModule
) -> None:
    other = export(Net(lambda _, x: torch.tanh(x)), torch.randn(3))
    with pytest.raises(GraphError, match="no operator in common") as caught:
        compare(other, converted, [(X,)])
    assert str(caught.value.found).startswith("1 operators in the float model, ")
    with pytest.raises(CalibrationError, match="got 0 batches"):
        compare(exported, converted, [])


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    entries = [NodeComparison(f"n{i}", f"n{i}", "op", "", value, 0.0, 1.0) for i, value in enumerate((9.0, math.inf))]
    path = Comparison(tuple(entries)).plot(tmp_path / "sqnr.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def handles(module: GraphModule) -> dict[str, int]:
    return {
        node.name: node.meta["custom"][NUMERIC_DEBUG_HANDLE_KEY]
        for node in calls(module)
        if NUMERIC_DEBUG_HANDLE_KEY in node.meta.get("custom", {})
    }


@pytest.mark.parametrize("of_program", [False, True])
def test_handles_survive_prepare_and_convert(of_program: bool) -> None:
    program = torch.export.export(network().eval(), (X,))
    module = program.module()
    assert isinstance(module, GraphModule)
    if of_program:
        generate_numeric_debug_handle(program)
        marked = program.module()
        assert isinstance(marked, GraphModule)
    else:
        generate_numeric_debug_handle(module)
        marked = module
    given = handles(marked)
    assert list(given) == ["conv2d", "batch_norm", "relu", "dropout", "flatten", "linear"]
    assert sorted(given.values()) == [1, 2, 3, 4, 5, 6]
    prepared = prepare_pt2e(marked, quantizer())
    prepared(X)
    converted = convert_pt2e(prepared)
    # A layer has the number of the batch norm that was folded into it.
    want = {name: given[f] for name, f in (("conv2d", "batch_norm"), ("relu", "dropout"))}
    want |= {name: given[name] for name in ("flatten", "linear")}
    assert handles(prepared) == want
    assert handles(converted) == want
    assert handles(marked) == given


@pytest.mark.parametrize("marked", [False, True])
def test_logs_of_two_programs(marked: bool) -> None:
    module = export(network(), X)
    if marked:
        generate_numeric_debug_handle(module)
    prepared = prepare_pt2e(module, quantizer())
    prepared(X)
    converted = convert_pt2e(prepared)
    reference, actual = (prepare_for_propagation_comparison(m) for m in (module, converted))
    assert extract_results_from_loggers(reference) == {}
    for x in (X, -X):
        assert torch.equal(reference(x), module(x))
        actual(x)
    logs = extract_results_from_loggers(reference)
    assert {type(key) for key in logs} == {int if marked else NodeSourceDebugInfo}
    (last,) = [log for log in logs.values() if log.node_name == "linear"]
    assert last.module == "5"
    assert [torch.equal(value, module(x)) for value, x in zip(last.stats, (X, -X), strict=True)] == [True, True]
    found = compare_results(logs, extract_results_from_loggers(actual))
    direct = compare(module, converted, [(X,), (-X,)])
    pairs = {s.actual_node_name: (s.ref_node_name, s.sqnr, s.max_error, s.cosine) for s in found.values()}
    assert pairs == {e.node: (e.float_node, e.sqnr, e.max_error, e.cosine) for e in direct.nodes}
    assert pairs["conv2d"][0] == "batch_norm"
    (summary,) = [s for s in found.values() if s.actual_node_name == "linear"]
    assert (summary.actual_module_stack, summary.ref_module_stack) == ("5", "5")
    for result, x in zip(summary.results, (X, -X), strict=True):
        want, got = module(x).detach(), converted(x).detach()
        assert float(result.sqnr) == pytest.approx(sqnr(want, got), rel=1e-5)
        assert float(result.mse_loss) == pytest.approx(float((want - got).pow(2).mean()))
        assert torch.equal(result.loss(torch.sub), got - want)
    with pytest.raises(GraphError, match="no operator in common"):
        compare_results(logs, {})


def test_loggers_have_the_names_and_attributes_of_torchao() -> None:
    """Scripts written for torchao read these names and attributes."""
    module = export(network(), X)
    logged = prepare_for_propagation_comparison(module)
    loggers = {name: part for name, part in logged.named_children() if isinstance(part, OutputLogger)}
    assert list(loggers) == [f"{node.name}_logger0" for node in calls(module)]
    logged(X)
    for node in calls(module):
        logger = loggers[f"{node.name}_logger0"]
        assert (logger.node_name, len(logger.stats)) == (node.name, 1)
        assert logger.nn_module_stack == node.meta["nn_module_stack"]
        assert node.name in repr(logger)


def test_operators_with_several_outputs_are_compared() -> None:
    def forward(_: Any, x: Tensor) -> Tensor:
        first, second = torch.split(x * 2, [1, 2], dim=1)
        return torch.cat([first, second.relu()], dim=1)

    x = torch.randn(2, 3)
    module = export(Net(forward), x)
    ours, theirs = (prepare_for_propagation_comparison(module) for _ in range(2))
    ours(x)
    theirs(x + 0.5)
    found = compare_results(*(extract_results_from_loggers(m) for m in (ours, theirs)))
    (split,) = [s for s in found.values() if s.ref_node_name == "split_with_sizes"]
    parts = [(v, v + 1) for v in torch.split(x * 2, [1, 2], dim=1)]
    for value, (want, got) in zip(split.results[0].sqnr, parts, strict=True):
        assert float(value) == pytest.approx(sqnr(want, got), rel=1e-5)
    assert "sqnr=" in repr(split.results[0])


def test_outputs_of_different_shapes_are_refused() -> None:
    one = {"a": torch.ones(2), "b": [torch.zeros(3), None]}
    other = {"a": torch.ones(2) * 3, "b": [torch.zeros(3), None]}
    result = QuantizationComparisonResult(other, one)
    assert {key: value for key, value in result.loss(_difference).items() if key == "a"} == {"a": 4.0}
    assert result.loss(_difference)["b"] == [0.0, None]
    for wrong in ({"a": torch.ones(3), "b": [torch.zeros(3)]}, 7):
        with pytest.raises(ValueError, match="cannot be compared") as caught:
            QuantizationComparisonResult(wrong, one)
        assert isinstance(caught.value, GraphError)
        assert "(2,), (3,)" in str(caught.value.found)


def _difference(actual: Tensor, reference: Tensor) -> float:
    return float((actual - reference).sum())


def test_graph_without_marks_or_history_is_refused() -> None:
    module = export(network(), X)
    for node in module.graph.nodes:
        node.meta.pop("from_node", None)
    with pytest.raises(GraphError, match="operators has a debug handle") as caught:
        prepare_for_propagation_comparison(module)
    assert "generate_numeric_debug_handle" in caught.value.remedy


def test_operators_inside_control_flow_are_compared() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:  # submodules by name
        with torch.no_grad():
            y = m.inner(x)
        z: Tensor = torch.cond(x.sum() > 0, lambda y: m.outer(y), lambda y: torch.sin(y), (y,))
        return z

    x = torch.randn(3, 4)
    exported = export(Net(forward, inner=nn.Linear(4, 4), outer=nn.Linear(4, 4)), x)
    with torch.no_grad():
        converted = quantized(exported, (x,), (-x,))
        result = compare(exported, converted, [(x,), (-x,)])
    found = {entry.operator: entry for entry in result.nodes if "." in entry.node}
    assert found["aten.linear.default"].sqnr > 20
    assert len(found) >= 2


def test_values_written_over_later_are_kept_as_they_were() -> None:
    def forward(_: Any, x: Tensor) -> Tensor:
        y = x * 2
        y.add_(1)
        return y * 1

    x = torch.ones(2)
    module = export(Net(forward), x)
    generate_numeric_debug_handle(module)
    logged = prepare_for_propagation_comparison(module)
    logged(x)
    logs = {log.node_name: log.stats[0].tolist() for log in extract_results_from_loggers(logged).values()}
    assert logs["mul"] == [2.0, 2.0]
    assert len(calls(module, aten.add_.Tensor)) == 1
