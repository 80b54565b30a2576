"""Learned scale and zero point: values and gradients against the formulas of LSQ, written out in NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qspec_core import SourceLocation, SpecError
from qspec_core.fake_quantize import (
    LearnableFakeQuantize,
    disable_range_learning,
    enable_observer,
    enable_range_learning,
)
from qspec_core.observers import (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverNeverRanWarning,
    PlaceholderObserver,
)


def learner(**kwargs: Any) -> Any:
    return LearnableFakeQuantize(MovingAverageMinMaxObserver, **{"dtype": torch.quint8, **kwargs})


def test_starts_from_the_observer_and_then_learns() -> None:
    module = learner()
    assert (module.scale, module.zero_point) == (None, None)
    assert not module.has_observed
    module.where = SourceLocation("relu", None, None)
    assert module.where == module.activation_post_process.where
    with pytest.warns(ObserverNeverRanWarning):
        module.calculate_qparams()
    x = torch.tensor([-1.0, 0.2, 3.0])
    module(x)
    assert isinstance(module.scale, nn.Parameter)
    observed = module.activation_post_process.calculate_qparams()
    assert all(torch.equal(a, b) for a, b in zip(module.calculate_qparams(), observed, strict=True))
    parameter = module.scale
    module(x * 2)
    assert module.scale is parameter  # an optimizer may hold it
    assert torch.equal(parameter.detach(), module.activation_post_process.calculate_qparams()[0])
    module.apply(enable_range_learning)
    found = parameter.item()
    module(x * 100)
    assert parameter.item() == found
    optimizer = torch.optim.SGD(module.parameters(), lr=0.001)
    (module(x) - x).square().sum().backward()
    optimizer.step()
    assert parameter.item() != found
    module.apply(enable_observer)
    assert not module.learning_enabled.item()


@pytest.mark.parametrize("use_grad_scaling", [False, True])
def test_gradients_are_those_of_lsq(use_grad_scaling: bool) -> None:
    module = learner(use_grad_scaling=use_grad_scaling)
    module(torch.tensor([-1.0, 2.0]))
    module.enable_range_learning()
    assert module.scale is not None
    assert module.zero_point is not None
    x = torch.tensor([-5.0, -0.51, 0.3, 1.23, 9.0], requires_grad=True)
    upstream = np.array([1.0, 2.0, -1.0, 3.0, 0.5])
    y = module(x)
    y.backward(torch.from_numpy(upstream).float())
    scale, zero = module.scale.item(), round(module.zero_point.item())
    ratio = x.detach().numpy().astype(np.float64) / scale
    level = np.rint(ratio) + zero
    inside = (level >= 0) & (level <= 255)
    clipped = np.clip(level, 0, 255)
    np.testing.assert_allclose(y.detach().numpy(), (clipped - zero) * scale, rtol=1e-5, atol=1e-7)
    factor = 1 / np.sqrt(5 * 255) if use_grad_scaling else 1.0
    by_scale = np.where(inside, np.rint(ratio) - ratio, clipped - zero)
    by_zero = np.where(inside, 0.0, -scale)
    assert module.scale.grad is not None
    assert module.zero_point.grad is not None
    assert x.grad is not None
    np.testing.assert_allclose(module.scale.grad.item(), np.dot(upstream, by_scale) * factor, rtol=1e-4)
    np.testing.assert_allclose(module.zero_point.grad.item(), np.dot(upstream, by_zero) * factor, rtol=1e-4)
    np.testing.assert_allclose(x.grad.numpy(), upstream * inside)


def test_each_channel_learns_its_own_scale() -> None:
    module = LearnableFakeQuantize(
        MovingAveragePerChannelMinMaxObserver, dtype=torch.qint8, qscheme=torch.per_channel_symmetric, ch_axis=1
    )
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 20.0])
    module(x)
    module.enable_range_learning()
    y = module(x)
    assert module.scale is not None
    assert module.zero_point is not None
    assert not module.zero_point.requires_grad
    scale = module.scale.detach().numpy()
    expected = np.clip(np.rint(x.numpy() / scale), -128, 127) * scale
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    y.sum().backward()
    assert module.scale.grad is not None
    assert module.scale.grad.shape == (3,)


def test_without_learning_no_gradient_reaches_the_scale() -> None:
    module = learner()
    x = torch.tensor([-1.0, 3.0], requires_grad=True)
    module(x)
    module.enable_range_learning()
    module.apply(disable_range_learning)
    module(x).sum().backward()
    assert module.scale is not None
    assert module.zero_point is not None
    assert module.scale.grad is None
    assert x.grad is not None
    assert not module.scale.requires_grad
    module.enable_range_learning()
    assert module.scale.requires_grad
    assert module.zero_point.requires_grad
    module.enable_observer()
    assert not module.zero_point.requires_grad


def test_a_scale_below_eps_is_raised_and_can_grow_again() -> None:
    module = learner()
    module(torch.tensor([0.0, 1.0]))
    module.enable_range_learning()
    assert module.scale is not None
    with torch.no_grad():
        module.scale.fill_(-1.0)
    y = module(torch.tensor([0.5]))
    assert 0 < y.item() < 1e-4
    assert module.calculate_qparams()[0].item() == torch.finfo(torch.float32).eps
    y.backward()
    assert module.scale.grad is not None
    assert module.scale.grad.item() == 255.0


def test_state_round_trip_before_and_after_the_first_forward() -> None:
    one, other = learner(), learner()
    other.load_state_dict(one.state_dict())
    x = torch.tensor([-1.0, 0.1, 3.0])
    one(x)
    one.enable_range_learning()
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))
    assert other.has_observed
    assert other.learning_enabled.item()


def test_empty_input_half_precision_and_repr() -> None:
    module = learner()
    empty = torch.empty(0)
    assert module(empty) is empty
    x = torch.tensor([1.0, 2.0])
    module.disable_fake_quant()
    assert module(x) is x
    assert "learning_enabled" in repr(module)
    assert learner(dtype=torch.int8).quant_min == -128
    assert learner()(x.to(torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(SpecError):
        LearnableFakeQuantize(PlaceholderObserver)
