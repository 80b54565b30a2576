"""Operators that are rewritten before ExecuTorch sees them, against torch's own in the converted graph."""

import pytest
import torch
from torch import Tensor, nn
from xnnpack_support import SideBySide, lowered, quantized, sqnr

ACTIVATIONS = {
    "selu": nn.SELU(),
    "celu": nn.CELU(0.7),
    "elu": nn.ELU(0.7),
    "rrelu": nn.RReLU(),
}


def test_activations_run_in_the_delegate() -> None:
    torch.manual_seed(0)
    model = SideBySide([nn.Sequential(nn.Linear(8, 8), activation) for activation in ACTIVATIONS.values()]).eval()
    inputs = [torch.randn(4, 8) * 2 for _ in ACTIVATIONS]
    result = quantized(model, *inputs)
    program = lowered(result)
    with torch.no_grad():
        found, wanted, real = program(*inputs), result.converted(*inputs), model(*inputs)
    for name, each, want, true in zip(ACTIVATIONS, found, wanted, real, strict=True):
        assert sqnr(want, each) > 60, name
        assert sqnr(true, each) > 35, name
    assert program.delegation.outside == ()


class Statistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = self.layer(x)
        rows = torch.std_mean(found, 1, keepdim=True, correction=0)
        return (*torch.var_mean(found, (2, 3)), *rows, *torch.var_mean(found), torch.std_mean(found)[0])


def test_variance_with_mean() -> None:
    x = torch.randn(1, 3, 10, 10)
    result = quantized(Statistics().eval(), x)
    with torch.no_grad():
        for found, wanted in zip(lowered(result)(x), result.converted(x), strict=True):
            assert found.shape == wanted.shape
            assert sqnr(wanted, found) > 45


@pytest.mark.parametrize(
    ("layer", "pool", "shape"),
    [
        (nn.Conv2d(3, 8, 3), nn.AdaptiveMaxPool2d((2, 3)), (1, 3, 9, 10)),
        (nn.Conv2d(3, 8, 3), nn.AdaptiveMaxPool2d(1), (2, 3, 9, 10)),
        (nn.Conv1d(3, 8, 3), nn.AdaptiveMaxPool1d(3), (1, 3, 12)),
    ],
    ids=["2d", "to one pixel", "1d"],
)
def test_adaptive_maximum_pools(layer: nn.Module, pool: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    result = quantized(nn.Sequential(layer, pool).eval(), x)
    with torch.no_grad():
        found, wanted = lowered(result)(x), result.converted(x)
    assert found.shape == wanted.shape
    assert sqnr(wanted, found) > 45


class Bilinear(nn.Module):
    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.layer, self.form = nn.Linear(4, 4), nn.Bilinear(4, 5, 3, bias=bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.form(self.layer(x), y)
        return found


@pytest.mark.parametrize("bias", [False, True])
def test_bilinear_layers(bias: bool) -> None:
    inputs = torch.randn(2, 3, 4), torch.randn(2, 3, 5)
    result = quantized(Bilinear(bias=bias).eval(), *inputs)
    with torch.no_grad():
        found, wanted = lowered(result)(*inputs), result.converted(*inputs)
    assert found.shape == wanted.shape
    assert sqnr(wanted, found) > 45
