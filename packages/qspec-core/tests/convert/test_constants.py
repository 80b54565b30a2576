"""Constants in converted graphs: all observed, stored once, quantized as plain torch does."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_support import (
    Frozen,
    Net,
    affine_parameters,
    at_activation,
    at_weight,
    aten,
    calls,
    export,
    quantized,
    simulate,
)
from torch import nn
from torch.fx import GraphModule

from qspec_core import (
    Q_ANNOTATION_KEY,
    ObserverNeverRanWarning,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
    convert_pt2e,
    prepare_pt2e,
)
from qspec_core.observers import MinMaxObserver

PER_TENSOR = QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_symmetric)


class Shared(Quantizer):
    """Two linear layers, the second weight with the parameters of the first."""

    def annotate(self, model: GraphModule) -> GraphModule:
        (a, b) = calls(model, aten.linear.default)
        first, second = a.all_input_nodes[1], b.all_input_nodes[1]
        a.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({first: PER_TENSOR})
        b.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({second: SharedQuantizationSpec((first, a))})
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept everything."""


def test_weights_that_share_parameters_are_all_observed_without_calibration() -> None:
    small, large = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        large.weight.mul_(50)
    x = torch.randn(8, 4)
    converted = convert_pt2e(prepare_pt2e(export(nn.Sequential(small, large), x), Shared()))
    with torch.no_grad():
        scale = torch.cat([small.weight, large.weight]).abs().max() / 127.5
        weights = [simulate(layer.weight, scale.item(), 0, -128, 127) for layer in (small, large)]
        assert torch.equal(converted(x), F.linear(F.linear(x, weights[0]), weights[1]))


def test_tied_weights_are_stored_once() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), second)
    x = torch.randn(8, 4)
    exported = export(model, x)
    converted = quantized(exported, (x,))
    with torch.no_grad():
        y = F.relu(F.linear(at_activation(x), at_weight(first.weight)))
        want = F.linear(simulate(y, *affine_parameters(F.relu(first(x))), 0, 255), at_weight(first.weight))
        assert torch.equal(converted(x), want)
    called_twice = Net(lambda m, x: m.layer(F.relu(m.layer(x))), layer=first)
    converted = quantized(export(called_twice, x), (x,))
    assert sum(value.dtype == torch.int8 for value in converted.state_dict().values()) == 1
    with torch.no_grad():
        assert torch.equal(converted(x), want)


def test_constant_that_two_nodes_read_through_one_observer_is_stored_once() -> None:
    layer = nn.Linear(4, 4, bias=False)
    x = torch.randn(8, 4)
    exported = export(Net(lambda m, x: m.layer(F.relu(m.layer(x))), layer=layer), x)
    _, second = calls(exported, aten.linear.default)
    weight = second.all_input_nodes[1]
    with exported.graph.inserting_before(second):
        again = exported.graph.get_attr(str(weight.target))
    again.meta = dict(weight.meta)
    second.replace_input_with(weight, again)
    exported.recompile()
    converted = convert_pt2e(prepare_pt2e(exported, Shared()))
    assert [tuple(v.shape) for v in converted.state_dict().values() if v.dtype == torch.int8] == [(4, 4)]
    with torch.no_grad():
        w = simulate(layer.weight, (layer.weight.abs().max() / 127.5).item(), 0, -128, 127)
        assert torch.equal(converted(x), F.linear(F.relu(F.linear(x, w)), w))


class Difference(Quantizer):
    """A difference whose second operand is computed from a constant: no weight, so preparing leaves it in the graph."""

    def annotate(self, model: GraphModule) -> GraphModule:
        (difference,) = calls(model, aten.sub.Tensor)
        left, right = difference.all_input_nodes
        act = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
        difference.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({left: act, right: PER_TENSOR})
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept everything."""


@pytest.mark.parametrize("calibrated", [True, False])
def test_expression_of_constants_is_stored_as_integers(calibrated: bool) -> None:
    w, x = torch.randn(3, 4), torch.randn(4, 3)
    exported = export(Net(lambda m, x: x - m.w.t() * 2, w=w), x)
    frozen = Frozen(exported)
    prepared = prepare_pt2e(exported, Difference())
    if calibrated:
        prepared(x)
        converted, unfolded = convert_pt2e(prepared), convert_pt2e(prepared, fold_quantize=False)
        assert torch.equal(converted(x), unfolded(x))
        assert len(calls(unfolded, aten.t.default)) == 1
    else:
        with pytest.warns(ObserverNeverRanWarning, match="1 observers saw no data"):
            converted = convert_pt2e(prepared)
    assert not calls(converted, aten.t.default, aten.mul.Tensor)
    (stored,) = [value for value in converted.state_dict().values() if value.dtype == torch.int8]
    folded = (w.t() * 2).contiguous()
    scale = (folded.abs().max() / 127.5).item()
    assert torch.equal(stored.float(), torch.round(folded * (1.0 / scale)).clamp(-128, 127))
    assert "w" not in converted.state_dict()
    frozen.check()


def test_expression_that_float_operators_read_too_stays() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:  # a buffer by name
        doubled = m.w.t() * 2
        result: torch.Tensor = x - doubled + doubled.sum()
        return result

    w, x = torch.randn(3, 4), torch.randn(4, 3)
    prepared = prepare_pt2e(export(Net(forward, w=w), x), Difference())
    prepared(x)
    converted = convert_pt2e(prepared)
    converted.graph.lint()
    assert len(calls(converted, aten.mul.Tensor)) == 1
    with torch.no_grad():
        difference = at_activation(x) - simulate(w.t() * 2, ((2 * w).abs().max() / 127.5).item(), 0, -128, 127)
        assert torch.equal(converted(x), difference + (w.t() * 2).sum())
