"""A lowered program that is wrong is found, and the operator is named; one that is right is left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_support import Net, aten, export, quantized, toy_backend
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import qspec_core as qspec
from qspec_core import DivergenceWarning, LoweringError, ops
from qspec_core._agreement import calls_of, check_lowered
from qspec_core.graph import argument, copy_graph_module
from qspec_core.lowering import FLOAT_KEY

X = torch.randn(8, 3, 8, 8)


def network() -> nn.Module:
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ELU(), nn.Flatten(), nn.Linear(96, 10)
    return nn.Sequential(*layers)


Edit = Callable[[GraphModule], None]


def edited(edit: Edit) -> Any:  # Backend.lower
    """A device whose program is the converted graph with a mistake in it."""

    def lower(converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> nn.Module:
        module = copy_graph_module(converted)
        edit(module)
        module.recompile()
        return module

    return lower


def nodes(module: GraphModule, target: Any) -> list[Node]:
    return [node for node in module.graph.nodes if node.target is target]


def after(module: GraphModule, target: Any, *call: Any) -> None:
    """Insert a call on the result of each node that calls `target` and is not left in float."""
    for node in nodes(module, target):
        if FLOAT_KEY in node.meta:
            continue
        with module.graph.inserting_after(node):
            made = module.graph.call_function(call[0], (node, *call[1:]))
        node.replace_all_uses_with(made)
        made.update_arg(0, node)


def scaled(module: GraphModule) -> None:
    after(module, aten.elu.default, aten.mul.Tensor, 0.95)


def transposed(module: GraphModule) -> None:
    after(module, aten.elu.default, aten.transpose.int, 2, 3)


def zeroed(module: GraphModule) -> None:
    after(module, aten.elu.default, aten.mul.Tensor, 0.0)


def infinite(module: GraphModule) -> None:
    after(module, aten.elu.default, aten.div.Tensor, 0.0)


@pytest.mark.parametrize("mistake", [scaled, transposed, zeroed, infinite])
def test_operator_that_gives_other_numbers_runs_in_float_and_is_named(mistake: Edit) -> None:
    backend = toy_backend(lower=edited(mistake))
    result = qspec.quantize(network(), (X,), backend=backend, calibration=[(X,)])
    with pytest.warns(DivergenceWarning, match="elu runs in float on 'toy'"):
        lowered = result.lowered
    assert torch.equal(lowered(X), result.converted(X))
    assert result.lowering_check is not None
    assert [name for name, _ in result.lowering_check.left_in_float] == ["elu"]
    (entry,) = (entry for entry in result.coverage if entry.node == "elu")
    assert entry.reason.startswith("kernel differs from the converted graph: result 0 of the example inputs")


def test_program_that_diverges_whatever_runs_in_float_is_refused_with_the_place() -> None:
    def always(module: GraphModule) -> None:
        for node in nodes(module, aten.conv2d.default)[1:]:
            with module.graph.inserting_after(node):
                made = module.graph.call_function(aten.mul.Tensor, (node, 1.2))
            node.replace_all_uses_with(made)
            made.update_arg(0, node)

    result = qspec.quantize(network(), (X,), backend=toy_backend(lower=edited(always)), calibration=[(X,)])
    with pytest.raises(LoweringError, match="other numbers than the converted graph, first at conv2d_1") as caught:
        _ = result.lowered
    assert caught.value.where.module_path == "2"
    assert "root mean square error" in str(caught.value.found)


def test_right_program_is_returned_as_it_is() -> None:
    made: list[nn.Module] = []

    def lower(converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> nn.Module:
        made.append(copy_graph_module(converted))
        return made[-1]

    result = qspec.quantize(network(), (X,), backend=toy_backend(lower=lower), calibration=[(X,)])
    assert result.lowered is made[0]
    assert len(made) == 1
    assert result.lowering_check is not None
    assert result.lowering_check.holds
    assert result.lowering_check.worst is not None
    assert result.lowering_check.worst.ratio == 0


def test_unchecked_program_may_be_wrong() -> None:
    backend = toy_backend(lower=edited(zeroed))
    result = qspec.quantize(network(), (X,), backend=backend, calibration=[(X,)], check=False)
    assert not torch.allclose(result.lowered(X), result.converted(X))
    assert result.lowering_check is None


@pytest.mark.parametrize("wrong", [lambda y: (y, y), lambda y: y[:, :2], lambda y: y.double(), lambda y: y.tolist()])
def test_results_of_another_form_are_refused(wrong: Callable[[Tensor], Any]) -> None:
    class Wrong(nn.Module):
        def __init__(self, converted: GraphModule) -> None:
            super().__init__()
            self.converted = converted

        def forward(self, x: Tensor) -> Any:
            return wrong(self.converted(x))

    def lower(converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> nn.Module:
        return Wrong(converted)

    result = qspec.quantize(network(), (X,), backend=toy_backend(lower=lower), calibration=[(X,)])
    with pytest.raises(LoweringError, match="other numbers"):
        _ = result.lowered


class Decay(nn.Module):
    h: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("h", torch.zeros(1, 6))

    def forward(self, x: Tensor) -> Tensor:
        self.h.mul_(0.5).add_(x.mean(0, keepdim=True))
        result: Tensor = self.linear(x + self.h)
        return result


def test_state_that_a_program_forgets_is_found_by_a_second_call() -> None:
    class Forgets(nn.Module):
        def __init__(self, converted: GraphModule) -> None:
            super().__init__()
            self.converted = converted

        def forward(self, x: Tensor) -> Any:
            return copy_graph_module(self.converted)(x)

    def forgetful(converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> nn.Module:
        return Forgets(converted)

    def faithful(converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> nn.Module:
        return copy_graph_module(converted)

    x = torch.randn(4, 6)
    kept = qspec.quantize(Decay(), (x,), backend=toy_backend(lower=faithful), calibration=[(x,)])
    state = kept.converted.get_buffer("h").clone()
    first = kept.lowered(x)
    assert torch.equal(kept.converted.get_buffer("h"), state)  # the check ran copies
    assert torch.equal(first, copy_graph_module(kept.converted)(x))
    lost = qspec.quantize(Decay(), (x,), backend=toy_backend(lower=forgetful), calibration=[(x,)])
    with pytest.raises(LoweringError, match="other numbers") as caught:
        _ = lost.lowered
    assert "a second call" in str(caught.value.found)


def test_other_sizes_are_tried_where_sizes_vary() -> None:
    class FixedBatch(nn.Module):
        def __init__(self, converted: GraphModule) -> None:
            super().__init__()
            self.converted = converted

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.converted(x)
            return result if len(x) == len(X) else result.flip(0)

    def lower(converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> nn.Module:
        return FixedBatch(converted)

    shapes = ({0: torch.export.Dim("batch", min=1, max=16)},)
    backend = toy_backend(lower=lower)
    result = qspec.quantize(network(), (X,), backend=backend, calibration=[(X,)], dynamic_shapes=shapes)
    with pytest.raises(LoweringError, match="other numbers") as caught:
        _ = result.lowered
    assert "inputs of another size" in str(caught.value.found)
    labels = [call.label for call in calls_of(result.converted, (X,))]
    assert labels == ["the example inputs", "inputs of another size"]
    assert len(calls_of(result.converted, (X,))[1].inputs[0]) == 9
    assert len(calls_of(result.converted, (torch.randn(16, 3, 8, 8),))[1].inputs[0]) == 15


def test_package_is_not_written_where_the_program_diverges(tmp_path: Any) -> None:
    def always(module: GraphModule) -> None:
        (output,) = module.graph.find_nodes(op="output")
        (value,) = output.all_input_nodes
        with module.graph.inserting_before(output):
            output.replace_input_with(value, module.graph.call_function(aten.neg.default, (value,)))

    result = qspec.quantize(network(), (X,), backend=toy_backend(lower=edited(always)), calibration=[(X,)])
    with pytest.raises(LoweringError, match="other numbers"):
        result.package(tmp_path / "model.toy")
    assert list(tmp_path.iterdir()) == []


def test_a_factor_smaller_than_rounding_is_found_by_the_size_of_the_result() -> None:
    x = torch.randn(4, 64)
    converted = quantized(export(nn.Linear(64, 500), x), (x,))
    calls = calls_of(converted, (x,))

    class Larger(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return converted(x) * 1.05

    (deviation,) = check_lowered(Larger(), calls, keeps_state=False).deviations
    assert deviation.ratio > 1
    assert "size 5.00% off" in deviation.found


def test_class_indices_may_change_by_a_rounding_and_no_further() -> None:
    model = Net(lambda m, x: m.a(x).argmax(1), a=nn.Linear(16, 64))
    x = torch.randn(500, 16)
    converted = quantized(export(model, x), (x,))
    calls = calls_of(converted, (x,))
    check = check_lowered(converted, calls, keeps_state=False)
    assert check.holds

    class Shuffled(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return converted(x).roll(1)

    assert not check_lowered(Shuffled(), calls, keeps_state=False).holds


def test_program_that_writes_to_its_inputs_gets_copies_in_their_layout() -> None:
    class Lowered(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            layouts.append((x.stride(), y.stride()))
            return y.mul_(0.5), kept(x, y.clone())[1]

    layouts: list[Any] = []
    x, y = torch.randn(6, 4).t(), torch.randn(4, 12)[:, ::2]
    model = Net(lambda m, x, y: (y.mul_(0.5), m.a(x)), a=Decay())
    converted = quantized(export(model, x, y), (x, y))
    before = x.clone(), y.clone()  # calibration wrote to them
    calls, kept = calls_of(converted, (x, y)), copy_graph_module(converted)
    check = check_lowered(Lowered(), calls, keeps_state=False)
    assert len(calls) == 2  # the graph keeps state
    assert check.holds
    assert layouts == [(x.stride(), y.stride())] * 2
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_errors_of_float_arithmetic_are_allowed_where_a_sum_cancels() -> None:
    model = Net(lambda m, x: m.a(x) - m.a(x), a=nn.Linear(16, 8))
    x = torch.randn(4, 16)
    converted = quantized(export(model, x), (x,))
    calls = calls_of(converted, (x,))
    assert not calls[0].expected[0].any()

    def off_by(error: float) -> nn.Module:
        class Off(nn.Module):
            def forward(self, x: Tensor) -> Any:
                return converted(x) + error

        return Off()

    assert check_lowered(off_by(2e-7), calls, keeps_state=False).holds
    assert not check_lowered(off_by(1e-2), calls, keeps_state=False).holds


@pytest.mark.parametrize("zero_point", [0, 3])
def test_expected_results_are_those_of_the_converted_graph(zero_point: int) -> None:
    converted = quantized(export(network(), X), (X,))
    layers = nodes(converted, ops.DEQUANTIZE_PER_CHANNEL)
    assert len(layers) == 3
    for layer in layers:
        converted.get_buffer(str(argument(layer, "zero_points").target)).fill_(zero_point)
    (call,) = calls_of(converted, (X,))
    with torch.no_grad():
        assert torch.equal(call.expected[0], converted(X))
    assert all(isinstance(argument(layer, "zero_points"), Node) for layer in layers)
