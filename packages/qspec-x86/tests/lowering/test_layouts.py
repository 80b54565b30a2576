"""Compiled packages of layers whose input has ambiguous strides, and of 3d convolutions with activations."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from x86_support import convert, sqnr

from qspec_core import Mode
from qspec_x86 import default_quantizer, load_package, package

F = nn.functional
SAME_DB = 100.0
"""The kernels sum integers exactly and the converted graph sums floats: they differ by roundings of float32."""


class Ambiguous(nn.Module):
    """One channel, one feature, one pixel: strides that are contiguous and channels-last, with float results."""

    def __init__(self) -> None:
        super().__init__()
        self.plane, self.up, self.line = nn.Conv2d(1, 8, 3), nn.ConvTranspose2d(1, 6, 3, stride=2), nn.Conv1d(1, 8, 3)
        self.rows = nn.Linear(1, 8)
        self.grow, self.pixel = nn.ConvTranspose2d(5, 6, 4), nn.Conv2d(5, 6, 3, padding=2)

    def forward(self, x: Tensor, pixels: Tensor, gray: Tensor) -> tuple[Tensor, ...]:
        line = x.flatten(2)
        # (batch, height, width, 1) -> (batch, 1, height, width)
        moved = self.plane(gray.permute(0, 3, 1, 2))
        return (
            *(self.plane(x), self.up(x), self.line(line), self.rows(line[:, 0, :5, None])),
            *(self.grow(pixels), self.pixel(pixels), moved),
        )


def inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(batch, 1, 7, 9) + 0.5, torch.randn(batch, 5, 1, 1), torch.randn(batch, 6, 5, 1)


@torch.no_grad()
@pytest.mark.parametrize("mode", [Mode.STATIC, Mode.DYNAMIC], ids=str)
def test_a_package_of_dynamic_batch_gives_the_layout_that_it_says(mode: Mode, tmp_path: Path) -> None:
    sizes = {0: torch.export.Dim("batch", min=1, max=16)}
    quantizer = default_quantizer(mode=mode)
    converted = convert(quantizer, Ambiguous(), *inputs(2), dynamic_shapes=(sizes, sizes, sizes))
    loaded = load_package(package(converted, inputs(2), tmp_path / "ambiguous.pt2"))
    for batch in (1, 2, 5):
        given = inputs(batch)
        for found, expected in zip(loaded(*given), converted(*given), strict=True):
            assert found.shape == expected.shape
            assert sqnr(expected, found) > SAME_DB


class Volumes(nn.Module):
    """3d convolutions with a float result, each with another activation, which Inductor fuses into 2d kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.transposed = nn.Conv3d(2, 4, 3), nn.ConvTranspose3d(2, 4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        activations = (F.relu, F.relu6, F.silu, F.hardswish, F.hardtanh, F.gelu)
        convolved = [activation(self.convolution(x)) for activation in activations]
        return *convolved, *(activation(self.transposed(x)) for activation in activations), self.convolution(x) + 1.0


@torch.no_grad()
def test_a_package_of_3d_convolutions_runs_with_activations(tmp_path: Path) -> None:
    x = torch.randn(2, 2, 4, 5, 6)
    converted = convert(default_quantizer(), Volumes(), x)
    loaded = load_package(package(converted, (x,), tmp_path / "volumes.pt2"))
    for found, expected in zip(loaded(x), converted(x), strict=True):
        assert sqnr(expected, found) > SAME_DB
