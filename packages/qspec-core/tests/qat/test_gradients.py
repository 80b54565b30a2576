"""Results and gradients of one training step of a layer with a batch norm, against plain autograd."""

import copy

import pytest
import torch
from qat_support import CONFIG, exported, qat_quantizer
from torch import Tensor, nn
from torch.nn import functional

from qspec_core import freeze_bn_stats, move_exported_model_to_train, prepare_qat_pt2e


class _Round(torch.autograd.Function):
    """Round with the straight-through estimator, written out: the gradient passes within the range."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int
    ) -> Tensor:
        level = (x / scale).round() + zero
        ctx.save_for_backward((level >= low) & (level <= high))
        return (level.clamp(low, high) - zero) * scale

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors  # type: ignore[attr-defined]  # torch does not declare it
        return gradients[0] * inside, None, None, None, None


def through(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """`_Round`, with types."""
    rounded: Tensor = _Round.apply(x, scale, zero, low, high)  # type: ignore[no-untyped-call]  # torch's own
    return rounded


def affine(x: Tensor) -> Tensor:
    """Round to 0..255 over the range of the tensor, widened to hold 0."""
    low, high = x.detach().min().clamp(max=0), x.detach().max().clamp(min=0)
    scale = (high - low) / 255
    zero = (-(low / scale).round()).clamp(0, 255)
    return through(x, scale, zero, 0, 255)


def reference(net: nn.Sequential, x: Tensor, training: bool) -> Tensor:
    """The training form in plain torch."""
    conv, norm = net[0], net[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().reshape(-1, 1, 1, 1)
    scaled = conv.weight * factor
    scale = scaled.detach().abs().amax((1, 2, 3), keepdim=True) / 127
    weight = through(scaled, scale, torch.zeros(()), -127, 127) / factor
    y = functional.conv2d(affine(x), weight, conv.bias, padding=1)
    statistics = norm.running_mean, norm.running_var
    y = functional.batch_norm(y, *statistics, norm.weight, norm.bias, training, 0.1, norm.eps)
    return affine(functional.relu(y))


@pytest.mark.parametrize("frozen", [False, True], ids=["batch statistics", "running statistics"])
def test_a_training_step_equals_plain_autograd(frozen: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, eps=1e-3), nn.ReLU()).train()
    nn.init.uniform_(net.get_parameter("1.weight"), -2, 2)
    net.get_buffer("1.running_var").uniform_(0.5, 2)
    x, weights = torch.randn(4, 3, 6, 6), torch.randn(4, 4, 6, 6)
    plain = copy.deepcopy(net)
    module = move_exported_model_to_train(prepare_qat_pt2e(exported(net, x), qat_quantizer(CONFIG)))
    if frozen:
        module.apply(freeze_bn_stats)
    found, expected = module(x), reference(plain, x, training=not frozen)
    # A value at a tie may round to the other side: few do.
    assert ((found - expected).abs() > 1e-5).float().mean() < 0.01
    torch.autograd.backward((found * weights).sum())
    torch.autograd.backward((expected * weights).sum())
    for name, parameter in net.named_parameters():
        gradient = plain.get_parameter(name).grad
        assert parameter.grad is not None
        assert gradient is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-3, msg=name)
    torch.testing.assert_close(net.get_buffer("1.running_mean"), plain.get_buffer("1.running_mean"))
    torch.testing.assert_close(net.get_buffer("1.running_var"), plain.get_buffer("1.running_var"))
