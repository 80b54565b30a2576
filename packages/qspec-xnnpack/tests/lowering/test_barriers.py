"""Dynamic convolutions whose input has other readers, or was reshaped; dynamic linear layers that read images."""

import pytest
import torch
from torch import Tensor, nn
from xnnpack_support import lowered, sqnr

import qspec_core as qspec
from qspec_xnnpack import BACKEND


class Returned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = torch.sigmoid(x)
        return found, self.layer(found)


class WithLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.linear = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = torch.sigmoid(x)
        return (self.layer(found) + self.linear(found),)


class Reshaped(Returned):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.layer(x.reshape(1, 8, 8, 8)),)


class Chain(WithLinear):
    """Nothing is copied: a convolution's result is in the order that the next one takes."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.layer(torch.relu(self.layer(x))),)


class Rows(nn.Module):
    """Linear layers over the rows of an image that a static convolution gave: by default they are dynamic."""

    def __init__(self, *, several: bool) -> None:
        super().__init__()
        self.layer, self.several = nn.Conv2d(3, 8, 1), several
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = torch.tanh(self.layer(x))
        return (torch.relu(self.first(found)), self.second(found), found) if self.several else (self.first(found),)


@pytest.mark.parametrize("several", [False, True])
def test_dynamic_linear_layers_read_images(several: bool) -> None:
    torch.manual_seed(0)
    model, x = Rows(several=several).eval(), torch.randn(2, 3, 8, 8)
    result = qspec.quantize(model, (x,), backend=BACKEND, calibration=[(x,)])
    program = lowered(result)
    assert list(program.delegation.rows.values())[1:] == (["linear + relu", "linear"] if several else ["linear"])
    assert (program.delegation.delegates, program.delegation.outside) == (1, ())
    with torch.no_grad():
        for real, wanted, found in zip(model(x), result.converted(x), program(x), strict=True):
            assert sqnr(wanted, found) > 40
            assert sqnr(real, found) > 30


@pytest.mark.parametrize(
    ("model", "copies"), [(Returned(), 1), (WithLinear(), 1), (Reshaped(), 1), (Chain(), 0)], ids=str
)
def test_results_are_those_of_the_converted_graph(model: nn.Module, copies: int) -> None:
    x = torch.randn(512) if isinstance(model, Reshaped) else torch.randn(1, 8, 8, 8)
    result = qspec.quantize(model.eval(), (x,), backend=BACKEND, mode="dynamic")
    program = lowered(result)
    with torch.no_grad():
        for real, wanted, found in zip(model(x), result.converted(x), program(x), strict=True):
            assert sqnr(wanted, found) > 60
            assert sqnr(real, found) > 35
    assert program.delegation.outside == ("_clone_dim_order",) * copies
