"""The convolution row against integer arithmetic in plain torch, exact since every scale is a power of two.

The kernel adds the zero point before it rounds, so of a value in the middle of two steps an odd zero point makes the
other
neighbour: output zero points are even here, except in the one test of that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from x86_support import FORMS, Grid, Lower, Weight, count, export

from qspec_x86 import LOWERING_KEY, lower_eager


@dataclass(frozen=True)
class Shape:
    channels: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    groups: int = 1


OTHER_GRID = Grid(2.0**-3, 13)
"""Of the tensor that is added."""

SHAPES = {
    "3x3": Shape(16, 32),
    "pointwise": Shape(8, 24, kernel=1, padding=0),
    "stem": Shape(3, 32, stride=2),
    "odd": Shape(7, 13),
    "depthwise": Shape(33, 33, kernel=5, stride=2, padding=2, groups=33),
    "depthwise multiplier": Shape(8, 16, groups=8),
    "grouped": Shape(8, 12, groups=4),
    "dilated": Shape(8, 8, padding=2, dilation=2),
    "one channel": Shape(1, 5),
}


def hardtanh(y: Tensor) -> Tensor:
    return nn.functional.hardtanh(y, -0.75, 2.5)


CLAMPS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.clone,
    "relu": torch.relu,
    "relu6": nn.functional.relu6,
    "hardtanh": hardtanh,
}


class Layer(nn.Module):
    """quantize -> convolution [+ quantized other, in either order] [-> clamp] [-> quantize]."""

    def __init__(
        self,
        shape: Shape,
        weight: Weight,
        x_grid: Grid,
        *,
        clamp: str = "none",
        other_grid: Grid = OTHER_GRID,
        y_grid: Grid | None = None,
        swap: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.weight, self.clamp, self.swap = shape, weight, clamp, swap
        self.x_grid, self.other_grid, self.y_grid = x_grid, other_grid, y_grid
        self.bias = nn.Parameter(torch.randint(-40, 40, (shape.outputs,)) * 2.0**-6)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        s = self.shape
        return nn.functional.conv2d(x, weight, bias, s.stride, s.padding, s.dilation, s.groups)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.convolve(self.x_grid(x), self.weight(), self.bias)
        if other is not None:
            z = self.other_grid(other)
            y = z + y if self.swap else y + z
        if self.clamp != "none":
            y = CLAMPS[self.clamp](y)
        return y if self.y_grid is None else self.y_grid(y)

    def reference(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """In float64, where these sums of products of integers are exact."""
        y = self.convolve(self.x_grid.values(x), self.weight.values(), self.bias.double())
        if other is not None:
            y = y + self.other_grid.values(other)
        y = CLAMPS[self.clamp](y)
        return y if self.y_grid is None else self.y_grid.values(y)


def make(shape: Shape, **options: Any) -> Layer:
    weight = Weight(shape.outputs, shape.channels // shape.groups, shape.kernel, shape.kernel)
    return Layer(shape, weight, **{"x_grid": Grid(zero_point=113)} | options)


def check(layer: Layer, lower: Lower, *inputs: Tensor) -> Any:
    lowered = lower(export(layer, *inputs))
    before = [x.clone() for x in inputs]
    torch.testing.assert_close(lowered(*inputs).double(), layer.reference(*inputs), rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
    return lowered


@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize("zero_point", [0, 113])
@pytest.mark.parametrize("name", SHAPES)
def test_float_output_equals_integers(name: str, zero_point: int, lower: Lower) -> None:
    layer = make(SHAPES[name], x_grid=Grid(zero_point=zero_point))
    lowered = check(layer, lower, 4 * torch.randn(2, SHAPES[name].channels, 9, 11))
    assert count(lowered, "qconv_pointwise") == 1
    assert count(lowered, "aten.conv") == 0


@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("zero_point", [0, 20])
@pytest.mark.parametrize("high", [255, 127, 100])
def test_clamp_and_requantize_equal_integers(high: int, zero_point: int, clamp: str, lower: Lower) -> None:
    # The kernel saturates to 0..255: a narrower range must be clamped by it, or the integers leave the range.
    y_grid = Grid(2.0**-4, zero_point, 0, high)
    layer = make(SHAPES["odd"], clamp=clamp, y_grid=y_grid)
    lowered = check(layer, lower, 4 * torch.randn(2, 7, 9, 9))
    assert count(lowered, "qconv_pointwise") == 1
    # One quantize at the input and one dequantize at the output are left: nothing between them is float.
    assert (count(lowered, "quantize_per_tensor"), count(lowered, "hardtanh")) == (2, 0)
    assert count(lowered, "aten.") == 0


@pytest.mark.parametrize(
    ("scale", "clamp", "attr"),
    [(6 / 255, "relu6", "none"), (6 / 200, "relu6", "hardtanh"), (6 / 300, "relu6", "none"), (2.0**-5, "relu", "none")],
)
def test_clamps_vanish_into_saturation(scale: float, clamp: str, attr: str) -> None:
    layer = make(SHAPES["3x3"], clamp=clamp, y_grid=Grid(scale))
    x = 4 * torch.randn(1, 16, 8, 8)
    lowered = lower_eager(export(layer, x), "any")
    (kernel,) = (node for node in lowered.graph.nodes if "qconv_pointwise" in str(node.target))
    assert kernel.args[14] == attr
    # These scales are no powers of two: the float32 product of scales may round a value over the middle of a step.
    torch.testing.assert_close(lowered(x).double(), layer.reference(x), rtol=0, atol=scale * 1.001)


@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("clamp", ["none", "relu"])
@pytest.mark.parametrize("high", [255, 127])
def test_residual_sum_equals_integers(high: int, clamp: str, swap: bool, lower: Lower) -> None:
    y_grid = Grid(2.0**-2, 8, 0, high)
    layer = make(SHAPES["odd"], clamp=clamp, swap=swap, y_grid=y_grid)
    lowered = check(layer, lower, 4 * torch.randn(2, 7, 9, 9), 4 * torch.randn(2, 13, 9, 9))
    fused = int(lower is lower_eager and high == 255)
    assert count(lowered, "qconv_sum") == fused
    assert count(lowered, "qconv_pointwise") == 1 - fused
    assert count(lowered, "aten.add") == 1 - fused


@pytest.mark.parametrize("lower", FORMS)
def test_residual_sum_with_a_float_reader_equals_integers(lower: Lower) -> None:
    layer = make(SHAPES["odd"])
    lowered = check(layer, lower, 4 * torch.randn(2, 7, 9, 9), 4 * torch.randn(2, 13, 9, 9))
    assert count(lowered, "qconv_pointwise") == 1


@pytest.mark.parametrize("lower", FORMS)
def test_an_odd_zero_point_moves_ties_by_one_step_at_most(lower: Lower) -> None:
    layer = make(SHAPES["odd"], y_grid=Grid(2.0**-2, 7))
    x, other = 4 * torch.randn(2, 7, 9, 9), 4 * torch.randn(2, 13, 9, 9)
    found = lower(export(layer, x, other))(x, other).double()
    torch.testing.assert_close(found, layer.reference(x, other), rtol=0, atol=2.0**-2)
    assert (found != layer.reference(x, other)).double().mean() < 0.01


class ReadAgain(nn.Module):
    """The accumulator of the sum, the result of a convolution, is read again after it, through a view."""

    def __init__(self, first: Layer, second: Layer, grid: Grid) -> None:
        super().__init__()
        self.first, self.second, self.grid = first, second, grid

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        z = self.grid(self.second.convolve(y, self.second.weight(), self.second.bias) + y)
        return z, y.transpose(2, 3)

    def reference(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first.reference(x)
        second = self.second
        z = self.grid.values(second.convolve(y, second.weight.values(), second.bias.double()) + y)
        return z, y.transpose(2, 3)


def test_an_accumulator_that_is_read_again_is_not_overwritten() -> None:
    grid = Grid(2.0**-3, 6)
    model = ReadAgain(make(Shape(8, 8), y_grid=grid), make(Shape(8, 8), x_grid=grid), Grid(2.0**-2, 60))
    x = 4 * torch.randn(2, 8, 6, 6)
    lowered = lower_eager(export(model, x), "any")
    assert count(lowered, "qconv_sum") == 1
    for found, expected in zip(lowered(x), model.reference(x), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=0)


def test_a_sum_that_broadcasts_is_left_outside() -> None:
    y_grid = Grid(2.0**-2, 8)
    layer = make(SHAPES["odd"], y_grid=y_grid)
    lowered = check(layer, lower_eager, 4 * torch.randn(2, 7, 9, 9), 4 * torch.randn(1, 13, 1, 1))
    assert (count(lowered, "qconv_sum"), count(lowered, "qconv_pointwise")) == (0, 1)


@pytest.mark.parametrize("lower", FORMS)
def test_any_layout_of_the_input_gives_the_same(lower: Lower) -> None:
    layer = make(SHAPES["odd"], y_grid=Grid(2.0**-3, 10))
    x = 4 * torch.randn(2, 7, 9, 9)
    lowered = lower(export(layer, x))
    strided = torch.randn(9, 18, 7, 4)[:, ::2, :, ::2].permute(3, 2, 0, 1)
    for given in (x, x.to(memory_format=torch.channels_last), strided):
        torch.testing.assert_close(lowered(given).double(), layer.reference(given), rtol=0, atol=0)


@pytest.mark.parametrize("lower", FORMS)
def test_batches_other_than_the_example(lower: Lower) -> None:
    layer = make(SHAPES["odd"], y_grid=Grid(2.0**-3, 10))
    shapes = ({0: torch.export.Dim("batch", min=1, max=8)},)
    lowered = lower(export(layer, torch.randn(2, 7, 9, 9), dynamic_shapes=shapes))
    for batch in (1, 3, 8):
        x = 4 * torch.randn(batch, 7, 9, 9)
        torch.testing.assert_close(lowered(x).double(), layer.reference(x), rtol=0, atol=0)


def test_signed_input_is_declined_with_a_reason() -> None:
    layer = make(SHAPES["odd"], x_grid=Grid(2.0**-5, 0, -128, 127, torch.int8))
    x = 4 * torch.randn(1, 7, 5, 5)
    lowered = lower_eager(export(layer, x), "any")
    (reason,) = lowered.meta[LOWERING_KEY].declined.values()
    assert "takes uint8" in reason.detail
    torch.testing.assert_close(lowered(x).double(), layer.reference(x), rtol=0, atol=1e-4)
