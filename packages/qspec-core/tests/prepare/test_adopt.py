"""Observers and annotations of other stacks, read by shape, in prepare and convert."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from core_support import Net, calls, export, simulate
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core import Q_ANNOTATION_KEY, Quantizer, SpecError, convert_pt2e, ops, prepare_pt2e
from qspec_core.graph import add_constant, constant_value
from qspec_core.interop import for_torchao
from qspec_core.observers import ObserverNeverRanWarning


class TheirObserver(nn.Module):
    """Scale from the largest magnitude; knows nothing of qspec, has no `has_observed`, and is not in its classes."""

    def __init__(self, dtype: torch.dtype, qscheme: torch.qscheme | None = None, is_dynamic: bool = False) -> None:
        super().__init__()
        self.dtype, self.qscheme, self.is_dynamic = dtype, qscheme, is_dynamic
        self.quant_min, self.quant_max, self.eps = -128, 127, torch.tensor([0.5])
        self.min_val, self.max_val = torch.tensor(torch.inf), torch.tensor(-torch.inf)

    def forward(self, x: Tensor) -> Tensor:
        self.min_val, self.max_val = torch.aminmax(x.detach())
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        largest = torch.maximum(-self.min_val, self.max_val) if self.max_val > self.min_val else torch.tensor(127.0)
        return (largest / 127).reshape(1), torch.zeros(1, dtype=torch.int64)


class WritesItself(TheirObserver):
    """Rounds halves: written as two calls, the second of which gives integers."""

    def convert(self, model: GraphModule, observer_node: Node) -> None:
        with model.graph.inserting_before(observer_node):
            twice = model.graph.call_function(torch.ops.aten.mul.Tensor, (observer_node.args[0], 2.0))
            integers = model.graph.call_function(torch.ops.aten.to.dtype, (twice, torch.int32))
            half = add_constant(model, "_half", torch.tensor(0.5), before=observer_node)
            result = model.graph.call_function(torch.ops.aten.mul.Tensor, (integers, half))
        observer_node.replace_all_uses_with(result)
        model.graph.erase_node(observer_node)


def spec(constructor: Any, **fields: Any) -> Any:
    """A spec of another stack."""
    known = {"dtype": torch.int8, "observer_or_fake_quant_ctr": constructor, "qscheme": torch.per_tensor_symmetric}
    return SimpleNamespace(**known, quant_min=None, quant_max=None, ch_axis=None, is_dynamic=False, **fields)


class Theirs(Quantizer):
    """Annotates as given, by the first linear layer: its inputs, then entries for other nodes."""

    def __init__(self, *inputs: Any, **others: Any) -> None:
        self.inputs, self.others = inputs, others

    def annotate(self, model: GraphModule) -> GraphModule:
        (linear,) = calls(model, torch.ops.aten.linear.default)
        nodes = {node.name: node for node in model.graph.nodes}
        given = dict(zip(linear.all_input_nodes, self.inputs, strict=False))
        given |= {nodes[name]: entry for name, entry in self.others.items() if name in nodes}
        output = self.others.get("output_qspec")
        shared = SimpleNamespace(edge_or_node=(nodes[output], linear)) if isinstance(output, str) else None
        linear.meta[Q_ANNOTATION_KEY] = SimpleNamespace(input_qspec_map=given, output_qspec=shared)
        return model

    def validate(self, model: GraphModule) -> None:
        pass


@pytest.fixture
def exported() -> GraphModule:
    return export(Net(lambda m, x: m.linear(torch.relu(x)), linear=nn.Linear(4, 3)), X)


X = torch.arange(8.0).reshape(2, 4) / 5


@pytest.mark.parametrize("fold", [True, False])
def test_an_observer_that_writes_itself(exported: GraphModule, fold: bool) -> None:
    prepared = prepare_pt2e(exported, Theirs(spec(WritesItself), spec(WritesItself)))
    prepared(X)
    nodes = list(prepared.graph.nodes)
    converted = convert_pt2e(prepared, fold_quantize=fold)
    assert list(prepared.graph.nodes) == nodes
    weight, bias = (exported.get_parameter(f"linear.{name}") for name in ("weight", "bias"))
    expected = nn.functional.linear((X * 2).int() / 2, (weight * 2).int() / 2, bias)
    torch.testing.assert_close(converted(X), expected, rtol=0, atol=0)
    assert len(calls(converted, torch.ops.aten.to.dtype)) == (1 if fold else 2)
    (linear,) = calls(converted, torch.ops.aten.linear.default)
    kept = {"val", "nn_module_stack", "stack_trace"}
    assert kept <= linear.all_input_nodes[0].meta.keys()
    weights = [constant_value(converted, node) for node in converted.graph.find_nodes(op="get_attr")]
    assert (torch.int32 in {value.dtype for value in weights if value is not None}) is fold
    torch.export.export(converted, (X,))


def test_range_that_does_not_fit_the_dtype(exported: GraphModule) -> None:
    """It says nothing of an observer that writes itself; of another one it is refused, with the node."""
    unfit = {"dtype": torch.int8, "quant_min": 0, "quant_max": 255}
    itself, other = (SimpleNamespace(**vars(spec(made)) | unfit) for made in (WritesItself, TheirObserver))
    converted = convert_pt2e(prepare_pt2e(exported, Theirs(None, itself)))
    assert len(calls(converted, torch.ops.aten.mul.Tensor)) == 1
    with pytest.raises(SpecError, match="range outside its dtype") as caught:
        prepare_pt2e(exported, Theirs(None, other))
    assert caught.value.where.node == "linear"
    assert "0" in str(caught.value.found)


def test_constants_are_observed_and_silence_is_named(exported: GraphModule) -> None:
    prepared = prepare_pt2e(exported, Theirs(spec(TheirObserver), spec(TheirObserver)))
    with pytest.warns(ObserverNeverRanWarning, match="1 observers"):
        converted = convert_pt2e(prepared)
    weight, bias = (exported.get_parameter(f"linear.{name}").detach() for name in ("weight", "bias"))
    scale = float((weight.abs().max() / 127).item())
    expected = nn.functional.linear(simulate(X, 1.0, 0, -128, 127), simulate(weight, scale, 0, -128, 127), bias)
    torch.testing.assert_close(converted(X), expected)


def test_a_dynamic_symmetric_observer_chooses_symmetrically(exported: GraphModule) -> None:
    def constructor(**fields: Any) -> nn.Module:
        return TheirObserver(torch.int8, torch.per_tensor_symmetric, is_dynamic=True)

    converted = convert_pt2e(prepare_pt2e(exported, Theirs(spec(constructor))))
    (choose,) = calls(converted, ops.CHOOSE_QPARAMS_SYMMETRIC)
    assert choose.args[1:] == (-128, 127, 0.5, torch.int8)


def test_edges_that_do_not_exist_are_left_out(exported: GraphModule) -> None:
    """The input is no argument of linear, but relu is; what shares with that point takes its spec over."""
    (x,) = exported.graph.find_nodes(op="placeholder")
    entries: dict[str, Any] = {x.name: spec(TheirObserver), "output_qspec": x.name}
    with pytest.warns(UserWarning, match=f"1 edges .* {x.name} -> linear"):
        prepared = prepare_pt2e(exported, Theirs(**entries))
    (observer,) = [node for node in prepared.graph.nodes if node.op == "call_module" and "post" in str(node.target)]
    assert observer.all_input_nodes[0].target == torch.ops.aten.linear.default


def test_for_torchao_needs_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    from qspec_core import BackendError, interop

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    interop._adapter_class.cache_clear()
    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(BackendError, match="torchao is not installed"):
        for_torchao(Theirs())
