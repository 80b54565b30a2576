"""Bodies of control flow are quantized like the graph around them: `no_grad` regions, branches, loops."""

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_support import (
    CONFIG,
    LINEAR,
    Frozen,
    Net,
    at_activation,
    at_weight,
    aten,
    calls,
    export,
    quantized,
    quantizer,
    settled,
    simulate,
    table,
)
from torch import Tensor, nn
from torch._higher_order_ops import while_loop
from torch.fx import GraphModule

from qspec_core import (
    GraphError,
    NothingQuantizedError,
    SelectorError,
    TableQuantizer,
    convert_pt2e,
    coverage,
    move_exported_model_to_train,
    prepare_pt2e,
)
from qspec_core.graph import attribute, bodies, graph_modules, observer_nodes
from qspec_core.lowering import Lowering, lower_rows, require_converted
from qspec_core.observers import ObserverNeverRanWarning
from qspec_core.patterns import Match, PatternTable, Row

X = torch.randn(6, 4)


def no_grad_region(m: Any, x: Tensor) -> Tensor:  # submodules by name
    with torch.no_grad():
        y = torch.relu(m.inner(x))
    result: Tensor = m.outer(y)
    return result


def region() -> Net:
    return Net(no_grad_region, inner=nn.Linear(4, 5), outer=nn.Linear(5, 3))


def branch(m: Any, x: Tensor) -> Tensor:  # as above
    result: Tensor = torch.cond(x.sum() > 0, lambda x: m.above(x), lambda x: m.below(x), (x,))
    return result


def branches() -> Net:
    return Net(branch, above=nn.Linear(4, 3), below=nn.Linear(4, 3))


def loop(m: Any, start: Tensor, x: Tensor) -> Tensor:  # as above
    result: Tensor = while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, torch.tanh(m.layer(x))), (start, x))[1]  # type: ignore[no-untyped-call]  # torch's
    return result


def at_layer(x: Tensor, layer: nn.Linear) -> Tensor:
    """A linear layer over quantized input and weight, in plain torch."""
    return F.linear(at_activation(x), at_weight(layer.weight), layer.bias)


def place(converted: GraphModule) -> dict[str, str]:
    return {entry.node: entry.row for entry in coverage(converted).quantized}


def test_region_without_gradients_computes_fake_quantized_products_bit_for_bit() -> None:
    model = region()
    exported = export(model, X)
    frozen = [Frozen(module) for _, module in graph_modules(exported)]
    assert len(frozen) == 2
    prepared = prepare_pt2e(exported, quantizer())
    with torch.no_grad():
        assert torch.equal(prepared(X), exported(X))
        converted = convert_pt2e(prepared)
        want = at_layer(torch.relu(at_layer(X, model.inner)), model.outer)  # type: ignore[arg-type]  # by name
        observed = torch.relu(model.inner(X))  # type: ignore[operator]  # as above
        low, high = observed.min().clamp(max=0), observed.max()
        scale = float((high - low) / 255)
        inner = simulate(torch.relu(at_layer(X, model.inner)), scale, 0, 0, 255)  # type: ignore[arg-type]  # as above
        want = F.linear(inner, at_weight(model.outer.weight), model.outer.bias)  # type: ignore[arg-type,union-attr]
        assert torch.equal(converted(X), want)
    for one in frozen:
        one.check()
    body = {name: module for name, module in graph_modules(prepared) if name}
    assert [len(observer_nodes(module)) for module in body.values()] == [2]
    (prefix,) = body
    assert place(converted) == {
        f"{prefix}linear": "linear + relu",
        f"{prefix}relu": "linear + relu",
        "linear_1": "linear",
    }


def test_float_weights_leave_and_float_biases_keep_their_names() -> None:
    converted = quantized(export(region(), X), (X,))
    state = converted.state_dict()
    assert {name for name in state if "bias" in name} == {"inner.bias", "outer.bias"}
    integers = [value for value in state.values() if value.dtype == torch.int8]
    assert sorted(tuple(value.shape) for value in integers) == [(3, 5), (5, 4)]
    assert not any("weight" in name for name in state)
    for body in bodies(converted).values():
        assert not body.state_dict()  # what export cannot trace


@pytest.mark.parametrize("taken", ["above", "below"])
def test_each_branch_is_calibrated_by_the_data_that_takes_it(taken: str) -> None:
    model = branches()
    high, low = X.abs(), -X.abs()
    x = high if taken == "above" else low
    with torch.no_grad():
        converted = quantized(export(model, X), (high,), (low,))
        assert torch.equal(converted(x), at_layer(x, getattr(model, taken)))
    assert sorted(place(converted)) == ["false_graph_0.linear", "true_graph_0.linear"]


def test_branch_that_no_batch_took_is_named() -> None:
    prepared = prepare_pt2e(export(branches(), X), quantizer())
    with torch.no_grad():
        prepared(X.abs())
    with pytest.warns(ObserverNeverRanWarning, match=r"1 observers saw no data.*at false_graph_0\."):
        convert_pt2e(prepared)


def test_loop_body_is_quantized_once_over_all_its_iterations() -> None:
    start, layer = torch.tensor(0), nn.Linear(4, 4)
    exported = export(Net(loop, layer=layer), start, X)
    with torch.no_grad():
        converted = quantized(exported, (start, X))
        inputs = [X]
        for _ in range(2):
            inputs.append(torch.tanh(layer(inputs[-1])))
        low, high = min(float(x.min()) for x in inputs), max(float(x.max()) for x in inputs)
        limits = torch.tensor([low, high])
        scale = float((limits[1] - limits[0]) / 255)
        zero_point = int(-torch.round(limits[0] / scale))
        want = X
        for _ in range(3):
            want = simulate(want, scale, zero_point, 0, 255)
            want = torch.tanh(F.linear(want, at_weight(layer.weight), layer.bias))
        assert torch.equal(converted(start, X), want)
    assert list(place(converted)) == ["while_loop_body_graph_0.linear"]


@pytest.mark.parametrize("model", [region, branches], ids=["no_grad", "cond"])
def test_converted_model_exports_again_and_survives_the_disk(model: Any) -> None:
    exported = export(model(), X)
    with torch.no_grad():
        converted = quantized(exported, (X,), (-X,))
        assert bodies(converted)
        want = converted(X)
        program = torch.export.export(converted, (X,))
        assert torch.equal(program.module()(X), want)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        assert torch.equal(torch.export.load(file).module()(X), want)


def test_state_that_a_region_writes_is_cloned() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            m.seen.add_(x.abs().max())
            y = m.inner(x) * m.seen
        return y + m.seen  # type: ignore[no-any-return]  # a buffer by name

    exported = export(Net(forward, inner=nn.Linear(4, 4), seen=torch.zeros(1)), X)
    prepared = prepare_pt2e(exported, quantizer())
    with torch.no_grad():
        prepared(X)
        assert exported.get_buffer("seen").item() == 0.0
        assert prepared.get_buffer("seen").item() == X.abs().max().item()
        converted = convert_pt2e(prepared)
        converted(X)
        assert prepared.get_buffer("seen").item() == X.abs().max().item()
        assert converted.get_buffer("seen").item() == X.abs().max().item()


def test_batch_norm_inside_a_region_is_folded_there_alone() -> None:
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = m.norm(m.conv(x))
        return y + m.conv(x)  # type: ignore[no-any-return]  # the same weight, without the norm

    x = torch.randn(2, 3, 6, 6)
    exported = export(settled(Net(forward, conv=conv, norm=norm)), x)
    prepared = prepare_pt2e(exported, quantizer())
    with torch.no_grad():
        torch.testing.assert_close(prepared(x), exported(x), rtol=1e-5, atol=1e-5)
    folded = [entry for entry in coverage(prepared) if entry.status.value == "folded"]
    assert [entry.row for entry in folded] == ["folded into conv2d"]
    assert folded[0].node.startswith("submod")


def test_selectors_see_the_graph_and_its_bodies_together() -> None:
    exported = export(region(), X)
    for name, rows in (("inner", 2), ("outer", 1)):
        only = TableQuantizer(table()).set_module_name(name, CONFIG)
        assert len(coverage(prepare_pt2e(exported, only)).quantized) == rows
    with pytest.raises(SelectorError) as caught:
        prepare_pt2e(exported, quantizer().set_module_name("iner", None))
    assert "inner" in str(caught.value.expected)


def test_quantizer_that_matches_inside_a_body_alone_is_enough() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = m.inner(x) if m.inner is not None else torch.tanh(x)
        return torch.tanh(y)

    assert len(coverage(prepare_pt2e(export(Net(forward, inner=nn.Linear(4, 4)), X), quantizer())).quantized) == 1
    model = Net(forward)
    vars(model)["inner"] = None
    with pytest.raises(NothingQuantizedError):
        prepare_pt2e(export(model, X), quantizer())


def test_regions_inside_branches() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        def above(x: Tensor) -> Tensor:
            with torch.no_grad():
                y: Tensor = m.inner(x)
            return torch.tanh(y)

        result: Tensor = torch.cond(x.sum() > 0, above, lambda x: torch.sin(x), (x,))
        return result

    model = Net(forward, inner=nn.Linear(4, 4))
    exported = export(model, X)
    with torch.no_grad():
        converted = quantized(exported, (X.abs(),), (-X.abs(),))
        x = X.abs()
        assert torch.equal(converted(x), torch.tanh(at_layer(x, model.inner)))  # type: ignore[arg-type]  # by name
        assert torch.equal(torch.export.export(converted, (x,)).module()(x), converted(x))


def test_wrong_states_are_found_inside_bodies() -> None:
    prepared = prepare_pt2e(export(region(), X), TableQuantizer(table()).set_module_name("inner", CONFIG))
    with pytest.raises(GraphError, match="prepared already"):
        prepare_pt2e(prepared, quantizer())
    with pytest.raises(GraphError, match="prepared, not converted"):
        require_converted(prepared, "lower")
    with torch.no_grad():
        prepared(X)
        converted = convert_pt2e(prepared)
    assert require_converted(converted, "lower") is converted
    with pytest.raises(GraphError, match="converted already"):
        convert_pt2e(converted)

    def dropped(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = F.dropout(m.inner(x), 0.5, False)
        return y + 1.0

    exported = move_exported_model_to_train(export(Net(dropped, inner=nn.Linear(4, 4)), X))
    with pytest.raises(GraphError, match="traced in training mode") as caught:
        prepare_pt2e(exported, quantizer())
    assert caught.value.where.node == "dropout"


def test_rows_lower_inside_bodies() -> None:
    seen: list[Tensor] = []

    def lower(match: Match, context: Lowering[None]) -> None:
        weight = match.operand("weight")
        seen.append(context.tensor(weight.args[0]))  # integers, although the converted body has them as an operand
        lowered = context.call(match.anchor, aten.linear.default, *match.anchor.args, like=match.anchor)
        match.anchor.replace_all_uses_with(lowered)

    row = Row(LINEAR.name, LINEAR.anchor, LINEAR.operands, LINEAR.flow, lower, modes=LINEAR.modes)
    exported = export(region(), X)
    with torch.no_grad():
        converted = quantized(exported, (X,))
        result = lower_rows(converted, PatternTable((row,), table().outputs), target="any")
        assert torch.equal(result.module(X), converted(X))
    assert sorted(tuple(value.shape) for value in seen) == [(3, 5), (5, 4)]
    assert {name.rpartition(".")[2] for name in result.lowered} == {"linear", "linear_1"}
    assert len(calls(converted, aten.linear.default)) == 1  # the input is not touched


def test_attribute_follows_dots_and_knows_what_is_missing() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 3)))
    linear = attribute(model, "0.0")
    assert attribute(model, "0.0.weight") is linear.weight
    assert attribute(model, "0.0.nothing") is None
    assert attribute(model, "1.0.weight") is None
