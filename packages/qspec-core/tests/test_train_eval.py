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


def test_a_plain_module_is_refused() -> None:
    with pytest.raises(GraphError) as caught:
        move_exported_model_to_eval(Net())  # type: ignore[arg-type]  # the wrong type is the test
    assert "export" in caught.value.remedy
