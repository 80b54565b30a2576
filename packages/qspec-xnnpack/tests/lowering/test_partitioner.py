"""Operators around the delegate: what it does not take runs in float beside it, with the right values."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from xnnpack_support import dynamic, lowered, quantized, sqnr

import qspec_core as qspec
from qspec_xnnpack import BACKEND

IMAGE = (1, 8, 8, 8)


def agrees(model: nn.Module, *inputs: Tensor, least: float = 45, to_float: float = 33) -> tuple[str, ...]:
    """The program gives the results of the converted graph and, less exactly, of the float model.

    Returns: the operators outside the delegate.
    """
    model.eval()
    result = quantized(model, *inputs)
    program = lowered(result)
    with torch.no_grad():
        real, wanted, found = model(*inputs), result.converted(*inputs), program(*inputs)
    assert sqnr(wanted, found) > least
    assert sqnr(real, found) > to_float
    return program.delegation.outside


class Computed(nn.Module):
    """A layer whose weight is computed by another one when the model runs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        source, weight = self.layer(x), self.layer(y)
        if self.kind == "conv2d":
            return F.conv2d(source, weight)
        if self.kind == "conv1d":
            return F.conv1d(source.flatten(2), weight.flatten(2))
        if self.kind == "conv_transpose2d":
            return F.conv_transpose2d(source, weight.transpose(0, 1))
        return F.linear(source.flatten(2)[..., :16], weight.flatten(2)[0])


@pytest.mark.parametrize("kind", ["conv2d", "conv1d", "conv_transpose2d", "linear"])
def test_layers_with_a_computed_weight_run_outside(kind: str) -> None:
    outside = agrees(Computed(kind), torch.randn(1, 3, 10, 10), torch.randn(1, 3, 6, 6), to_float=28)
    assert set(outside) & {"convolution", "mm", "bmm"}


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_a_pad_of_a_result_in_integers_runs(value: float) -> None:
    pad = nn.ConstantPad2d((1, 0, 0, 0), value)
    outside = agrees(nn.Sequential(nn.Conv2d(3, 8, 3), pad), torch.randn(1, 3, 9, 9))
    assert outside == (() if value else ("constant_pad_nd",))


@pytest.mark.parametrize(
    ("scale", "align", "runs"), [(1.5, False, False), (2.0, False, True), (1.5, True, True)], ids=str
)
def test_a_resize_with_scales_of_its_own_runs_outside(scale: float, align: bool, runs: bool) -> None:
    """1.5 times 7 pixels are 10. The delegate resizes by 10 / 7."""
    resize = nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=align)
    outside = agrees(nn.Sequential(nn.Conv2d(3, 8, 3), resize), torch.randn(1, 3, 9, 9))
    assert outside == (() if runs else ("upsample_bilinear2d",))


@pytest.mark.parametrize(
    "activation",
    [nn.Mish(), nn.Softplus(), nn.LogSigmoid(), nn.Hardshrink(), nn.Softshrink(), nn.Tanhshrink()],
    ids=str,
)
def test_images_keep_their_order_around_operators_outside(activation: nn.Module) -> None:
    """Height, width and channels are equal: permuted values would have the right shape."""
    layers = (nn.Conv2d(8, 8, 3, padding=1), activation, nn.Conv2d(8, 8, 3, padding=1))
    # One rounding may pass the threshold of Hardshrink, which moves a value by 0.5. Permuted values give 12 dB.
    agrees(nn.Sequential(*layers), torch.randn(IMAGE), least=30, to_float=20)


class TwoOrders(nn.Module):
    """One result that is read as an image and as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.layer(x)
        return F.hardshrink(found), self.head(found), torch.logsumexp(found, 1)


def test_one_result_read_in_two_orders() -> None:
    x = torch.randn(IMAGE)
    result = quantized(TwoOrders().eval(), x)
    with torch.no_grad():
        for found, wanted in zip(lowered(result)(x), result.converted(x), strict=True):
            assert sqnr(wanted, found) > 45


@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 9)], ids=str)
def test_prelu_of_other_ranks_than_images(shape: tuple[int, ...]) -> None:
    first = nn.Linear(8, 8) if len(shape) == 2 else nn.Conv1d(8, 8, 3)
    assert "where" in agrees(nn.Sequential(first, nn.PReLU(8, 0.3)), torch.randn(shape))


class Histogram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found * torch.histc(found, 8, 0, 7)


class Spectrum(Histogram):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.fft.rfft(self.layer(x)).abs()
        return found


@pytest.mark.parametrize(("model", "operator"), [(Histogram(), "aten.histc"), (Spectrum(), "aten.abs")], ids=str)
def test_operators_that_executorch_does_not_take_are_named(model: nn.Module, operator: str) -> None:
    x = torch.randn(4, 8)
    result = quantized(model.eval(), x)
    with pytest.raises(qspec.LoweringError) as caught:
        BACKEND.lower(result.converted, (x,), "any")
    assert operator in caught.value.problem
    assert caught.value.where.node


class Branches(Histogram):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.cond(x.sum() > 0, lambda y: self.layer(y), lambda y: self.layer(y) * 2, (x,))
        return found


def test_layers_in_control_flow_are_an_error_that_says_so() -> None:
    """ExecuTorch 1.5.1 refuses the float model too."""
    x = torch.randn(4, 8)
    result = dynamic(Branches().eval(), x)
    with pytest.raises(qspec.LoweringError, match="bodies of control flow") as caught:
        BACKEND.lower(result.converted, (x,), "any")
    assert caught.value.where.node == "cond"
