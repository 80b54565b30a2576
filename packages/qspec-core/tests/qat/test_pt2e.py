"""`prepare_qat_pt2e`: what it trains, which batch norms it folds, and what it refuses."""

import copy
from typing import Any

import pytest
import torch
from core_support import CONFIG as POST_TRAINING
from core_support import Net, quantizer
from qat_support import CONFIG, exported, qat_quantizer, train
from torch import Tensor, nn

from qspec_core import (
    CalibrationError,
    GraphError,
    SpecError,
    convert_pt2e,
    coverage,
    move_exported_model_to_eval,
    move_exported_model_to_train,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from qspec_core.fake_quantize import disable_observer
from qspec_core.graph import observer_nodes

aten = torch.ops.aten


def images(count: int = 4, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(1))


def conv_bn_relu() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()


def assert_converts(prepared: torch.fx.GraphModule, *inputs: Tensor) -> torch.fx.GraphModule:
    """Convert a module in evaluation mode; its results must be those of the fake-quantized module."""
    with torch.no_grad():
        found = prepared(*inputs)
        converted = convert_pt2e(prepared)
        torch.testing.assert_close(converted(*inputs), found, rtol=0, atol=0.02 * found.abs().max().item())
    return converted


def test_training_trains_the_model_that_was_exported() -> None:
    net = conv_bn_relu()
    before = copy.deepcopy(net.state_dict())
    graph = exported(net, images())
    code = graph.code
    prepared = prepare_qat_pt2e(graph, qat_quantizer())
    train(prepared, images(), steps=2)
    assert graph.code == code
    assert not observer_nodes(graph)
    assert net[1].num_batches_tracked == 2
    for name, value in net.state_dict().items():
        if name != "0.bias":  # a batch norm subtracts it again
            assert not torch.equal(value, before[name]), name
    for name, value in net.named_parameters():
        assert prepared.get_parameter(name) is value


def test_rows_match_as_after_training() -> None:
    net = nn.Sequential(*conv_bn_relu(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    graph = exported(net.train(), images())
    prepared = prepare_qat_pt2e(graph, qat_quantizer())
    train(prepared, images())
    after = prepare_pt2e(exported(net.eval(), images()), qat_quantizer())
    after(images())
    rows = [{entry.node: entry.row for entry in coverage(m).quantized} for m in (prepared, after)]
    assert rows[0] == rows[1]
    kinds = [[str(n.target) for n in convert_pt2e(m).graph.nodes if n.op == "call_function"] for m in (prepared, after)]
    assert kinds[0] == kinds[1]


def test_ranges_after_a_dropout_are_those_of_evaluation() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    prepared = prepare_qat_pt2e(exported(net, torch.ones(8, 4)), qat_quantizer())
    prepared(torch.ones(8, 4))
    (scale,) = [observer.scale for node, observer in observer_nodes(prepared) if node.all_input_nodes[0].name == "relu"]
    torch.testing.assert_close(scale, torch.tensor([1 / 255]))  # 2 / 255 if the kept values, doubled, were observed
    reads = [node for node, _ in observer_nodes(prepared) if any(u.target is aten.dropout.default for u in node.users)]
    assert len(reads) == 1


def test_a_tensor_read_with_and_without_dropout() -> None:
    net = Net(lambda self, x: self.b(self.drop(y := self.a(x))) + self.c(y), drop=nn.Dropout(0.5))
    net.a, net.b, net.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    prepared = prepare_qat_pt2e(exported(net.train(), x), qat_quantizer())
    train(prepared, x)
    converted = assert_converts(prepared, x)
    assert not converted.graph.find_nodes(op="call_function", target=aten.dropout.default)


@pytest.mark.parametrize("shared_norm", [True, False], ids=["one norm", "two norms"])
def test_a_convolution_called_twice(shared_norm: bool) -> None:
    torch.manual_seed(0)
    first, second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    second.weight.data.fill_(3.0)
    net = Net(lambda self, x, y: self.first(self.conv(x)) - self.second(self.conv(y)), conv=nn.Conv2d(3, 4, 3))
    net.first, net.second = first, first if shared_norm else second
    x, y = images(), images() * 2
    prepared = prepare_qat_pt2e(exported(net.train(), x, y), qat_quantizer())
    move_exported_model_to_train(prepared)
    prepared(x, y).sum().backward()
    move_exported_model_to_eval(prepared)
    converted = assert_converts(prepared, x, y)
    assert not converted.graph.find_nodes(op="call_function", target=aten.batch_norm.default)


def test_a_batch_norm_that_follows_no_layer_stays_and_switches() -> None:
    net = Net(lambda self, x: self.conv(torch.relu(self.norm(x))), norm=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 2, 3))
    prepared = prepare_qat_pt2e(exported(net.train(), images()), qat_quantizer())
    (entry,) = [entry for entry in coverage(prepared).skipped if "batch_norm" in entry.operator]
    assert "follows no layer" in entry.reason
    train(prepared, images())
    converted = assert_converts(prepared, images())
    (norm,) = converted.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
    assert norm.args[5] is False
    assert not torch.equal(net.norm.running_mean, torch.zeros(3))  # type: ignore[union-attr,arg-type]  # a batch norm


def test_several_batch_norms_on_one_convolution_are_declined_with_the_reason() -> None:
    net = Net(lambda self, x: self.a(y := self.conv(x)) + self.b(y), conv=nn.Conv2d(3, 4, 3))
    net.a, net.b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    prepared = prepare_qat_pt2e(exported(net.train(), images()), qat_quantizer())
    reasons = [entry.reason for entry in coverage(prepared).skipped if "batch_norm" in entry.operator]
    assert len(reasons) == 2
    assert all("2 batch norms read conv2d: batch_norm, batch_norm_1" in reason for reason in reasons)
    train(prepared, images())
    assert_converts(prepared, images())


def test_a_layer_that_is_left_in_float_is_folded_too() -> None:
    net = nn.Sequential(*conv_bn_relu(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)).train()
    chosen = qat_quantizer().set_module_name("0", None)
    prepared = prepare_qat_pt2e(exported(net, images()), chosen)
    train(prepared, images())
    converted = assert_converts(prepared, images())
    assert not converted.graph.find_nodes(op="call_function", target=aten.batch_norm.default)


def test_a_transposed_matrix_is_trained() -> None:
    weight = nn.Parameter(torch.randn(4, 2, generator=torch.Generator().manual_seed(3)))
    net, x = Net(lambda self, x: x @ self.matrix, matrix=weight), torch.ones(8, 4)
    before = weight.detach().clone()
    prepared = prepare_qat_pt2e(exported(net, x), qat_quantizer())
    train(prepared, x)
    assert not torch.equal(weight, before)
    assert_converts(prepared, x)


def test_copies_and_second_preparations_have_the_same_state() -> None:
    net = conv_bn_relu()
    prepared = prepare_qat_pt2e(exported(net, images()), qat_quantizer())
    train(prepared, images())
    prepared.apply(disable_observer)
    copied = copy.deepcopy(prepared)
    again = prepare_qat_pt2e(exported(conv_bn_relu(), images()), qat_quantizer())
    again.load_state_dict(prepared.state_dict())
    move_exported_model_to_eval(again)
    assert list(again.state_dict()) == list(prepared.state_dict())
    for module in (copied, again):
        torch.testing.assert_close(module(images()), prepared(images()), rtol=0, atol=0)
        torch.testing.assert_close(convert_pt2e(module)(images()), convert_pt2e(prepared)(images()), rtol=0, atol=0)


def refusal(model: nn.Module, x: Tensor, error: type[Any], chosen: Any = None) -> Any:  # an error of qspec
    graph = model if isinstance(model, torch.fx.GraphModule) else exported(model.train(), x)
    code, state = graph.code, copy.deepcopy(graph.state_dict())
    with pytest.raises(error) as caught:
        prepare_qat_pt2e(graph, qat_quantizer() if chosen is None else chosen)
    assert graph.code == code
    assert all(torch.equal(value, state[name]) for name, value in graph.state_dict().items())
    assert caught.value.remedy
    return caught.value


def test_a_prepared_and_a_converted_graph_are_refused() -> None:
    prepared = prepare_qat_pt2e(exported(conv_bn_relu(), images()), qat_quantizer())
    assert "prepared already" in refusal(prepared, images(), GraphError).problem
    train(prepared, images(), steps=1)
    assert "converted already" in refusal(convert_pt2e(prepared), images(), GraphError).problem


def test_a_batch_norm_without_running_statistics_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    error = refusal(net, images(), GraphError)
    assert error.where.module_path == "1"
    assert "track_running_stats=True" in error.remedy


def test_a_parameter_that_is_also_read_in_float_is_refused() -> None:
    net = Net(lambda self, x: self.layer(x) + self.layer.weight.sum(), layer=nn.Linear(4, 4))
    error = refusal(net, torch.ones(2, 4), GraphError)
    assert "layer.weight" in error.problem
    assert "linear" in error.problem
    assert "sum" in error.problem


def test_a_configuration_without_fake_quantizes_is_refused() -> None:
    error = refusal(conv_bn_relu(), images(), SpecError, quantizer(POST_TRAINING))
    assert "is_qat=True" in error.remedy
    assert "MinMaxObserver" in error.found


def test_a_loss_that_is_not_finite_is_named_where_it_appears() -> None:
    prepared = prepare_qat_pt2e(exported(conv_bn_relu(), images()), qat_quantizer())
    with pytest.raises(CalibrationError, match="not finite") as caught:
        prepared(images() * float("nan"))
    assert caught.value.where.node == "input_1"
    assert "learning rate" in caught.value.remedy


def test_post_training_preparation_names_the_one_for_training() -> None:
    with pytest.raises(GraphError) as caught:
        prepare_pt2e(exported(conv_bn_relu(), images()), quantizer(CONFIG))
    assert "prepare_qat_pt2e" in caught.value.remedy
