"""Switching graphs between training and evaluation, against the module they were exported from."""

import copy

import pytest
import torch
from torch import nn

from qspec_core import (
    GraphError,
    allow_exported_model_train_eval,
    move_exported_model_to_eval,
    move_exported_model_to_train,
)

aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.drop(torch.relu(self.norm(self.conv(x))))
        return y


def exported(net: nn.Module, x: torch.Tensor) -> torch.fx.GraphModule:
    module = torch.export.export(net, (x,)).module()
    assert isinstance(module, torch.fx.GraphModule)
    return module


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def test_eval_equals_the_module_in_evaluation(x: torch.Tensor) -> None:
    net = Net().train()
    module = exported(copy.deepcopy(net), x)
    assert move_exported_model_to_eval(module) is module
    torch.testing.assert_close(module(x), net.eval()(x))
    torch.testing.assert_close(module(x), module(x))


def test_train_drops_values_and_normalises_by_the_batch(x: torch.Tensor) -> None:
    net = Net().eval()
    module = move_exported_model_to_train(exported(copy.deepcopy(net), x))
    torch.manual_seed(3)
    found = module(x)
    torch.manual_seed(3)
    torch.testing.assert_close(found, net.train()(x))


def test_train_and_eval_methods_switch_once_allowed(x: torch.Tensor) -> None:
    net = Net().train()
    module = exported(copy.deepcopy(net), x)
    with pytest.raises(NotImplementedError):
        module.eval()
    assert allow_exported_model_train_eval(module) is module
    assert not module.eval().training
    torch.testing.assert_close(module(x), net.eval()(x))
    assert module.train().training
    assert not torch.equal(module(x), module(x))


def test_operators_inside_a_subgraph_are_switched(x: torch.Tensor) -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                y: torch.Tensor = self.net(x)
            return y + 1

    net = Inside().train()
    module = move_exported_model_to_eval(exported(copy.deepcopy(net), x))
    torch.testing.assert_close(module(x), net.eval()(x))


class Odd(nn.Module):
    """Dropout and batch norm with values that are not the defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, eps=0.25, momentum=0.75)
        self.drop, self.channels = nn.Dropout(0.9), nn.Dropout2d(0.25)
        self.alpha, self.rrelu = nn.AlphaDropout(0.125), nn.RReLU(0.25, 0.75)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.rrelu(self.norm(self.conv(x)))
        # Tensors of their own: in evaluation, export makes each of several dropouts of one tensor read the one before.
        return torch.cat([self.drop(y), self.channels(y * 2), self.alpha(y * 3)], 1)


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("exported_in_training", [False, True])
def test_switching_keeps_the_values_and_can_be_repeated(
    x: torch.Tensor, exported_in_training: bool, decomposed: bool
) -> None:
    # Decomposed, dropouts of an evaluation export are gone, and those of channels are written out.
    net = Net() if decomposed else Odd()
    torch.nn.init.uniform_(net.norm.weight)
    program = torch.export.export(copy.deepcopy(net).train(exported_in_training or decomposed), (x,))
    module = (program.run_decompositions() if decomposed else program).module()
    assert isinstance(module, torch.fx.GraphModule)
    for training in (True, True, False, False, True):
        switched = (move_exported_model_to_train if training else move_exported_model_to_eval)(module)
        assert switched.training is training
        torch.manual_seed(5)
        found = switched(x)
        torch.manual_seed(5)
        torch.testing.assert_close(found, net.train(training)(x))
        torch.testing.assert_close(module.get_buffer("norm.running_var"), net.norm.running_var)
    counted = module.get_buffer("norm.num_batches_tracked")
    assert counted == (3 if exported_in_training or decomposed else 0)  # an evaluation export has no counter


@pytest.mark.parametrize(
    ("form", "arguments"),
    [
        (aten._native_batch_norm_legit.default, (False, 0.5, 0.25)),
        (aten._native_batch_norm_legit_no_training.default, (0.5, 0.25)),
        (aten.native_batch_norm.default, (False, 0.5, 0.25)),
    ],
    ids=str,
)
def test_every_form_of_batch_norm_switches(x: torch.Tensor, form: object, arguments: tuple[object, ...]) -> None:
    class Norm(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert callable(form)
            found: torch.Tensor = form(x, self.weight, self.bias, self.running_mean, self.running_var, *arguments)[0]
            return found

    module, plain = exported(Norm(2), x), nn.BatchNorm2d(2, momentum=0.5, eps=0.25)
    for training in (True, False, True):
        (move_exported_model_to_train if training else move_exported_model_to_eval)(module)
        torch.testing.assert_close(module(x), plain.train(training)(x))
    torch.testing.assert_close(module.running_mean, plain.running_mean)


def test_a_batch_norm_that_cannot_be_switched_is_refused(x: torch.Tensor) -> None:
    class Norm(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = aten._batch_norm_no_update(
                x, self.weight, self.bias, self.running_mean, self.running_var, 0.1, 1e-5
            )[0]
            return found

    module = exported(Norm(2), x)
    code = module.code
    with pytest.raises(GraphError) as caught:
        move_exported_model_to_train(module)
    assert module.code == code
    assert caught.value.where.node == "_batch_norm_no_update"
    assert move_exported_model_to_eval(module) is module


def test_a_plain_module_is_refused() -> None:
    with pytest.raises(GraphError) as caught:
        move_exported_model_to_eval(Net())  # type: ignore[arg-type]  # the wrong type is the test
    assert "export" in caught.value.remedy
