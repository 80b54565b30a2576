"""Curves after convolutions and linears, and convolutions over one and three dimensions, against float64 arithmetic on
the same integers.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from x86_support import FORMS, Grid, Lower, Weight, count, export

from qspec_core import convert_pt2e, coverage, prepare_pt2e
from qspec_x86 import LOWERING_KEY, TABLE, default_quantizer, lower_eager

F = nn.functional
FLOAT_SHAPES: dict[str, tuple[int, ...]] = {
    "linear": (5, 7),
    "conv1d": (2, 7, 11),
    "conv2d": (2, 7, 9, 8),
    "conv3d": (2, 7, 5, 6, 4),
}
CLAMPS: dict[str, Callable[[Tensor], Tensor]] = {"none": nn.Identity(), "relu": torch.relu, "relu6": F.relu6}
CURVES: dict[str, Callable[[Tensor], Tensor]] = {"hardswish": F.hardswish, "silu": F.silu}


class Layer(nn.Module):
    """quantize -> layer [+ quantized other] [-> tail] [-> quantize]."""

    def __init__(
        self,
        weight: Weight,
        x_grid: Grid,
        tail: Callable[[Tensor], Tensor],
        y_grid: Grid | None = None,
        **geometry: int,
    ) -> None:
        super().__init__()
        self.weight, self.x_grid, self.tail, self.y_grid, self.geometry = weight, x_grid, tail, y_grid, geometry
        self.bias = nn.Parameter(torch.randint(-40, 40, (weight.integers.shape[0],)) * 2.0**-6)

    def layer(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        function = (F.linear, F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 2]
        result: Tensor = function(x, weight, bias, **self.geometry)
        return result

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.layer(self.x_grid(x), self.weight(), self.bias)
        y = self.tail(y if other is None else y + self.x_grid(other))
        return y if self.y_grid is None else self.y_grid(y)

    def reference(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.layer(self.x_grid.values(x), self.weight.values(), self.bias.double())
        y = self.tail(y if other is None else y + self.x_grid.values(other))
        return y if self.y_grid is None else self.y_grid.values(y)


def make(kind: str, tail: Callable[[Tensor], Tensor], y_grid: Grid | None = None, **more: Any) -> Layer:
    rank = len(FLOAT_SHAPES[kind]) - 2
    return Layer(Weight(12, 7, *(3,) * rank), Grid(zero_point=113), tail, y_grid, **more)


@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("high", [None, 255, 127])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
def test_a_curve_runs_in_the_kernel(kind: str, high: int | None, curve: str, lower: Lower) -> None:
    step = 2.0**-4
    layer = make(kind, CURVES[curve], None if high is None else Grid(step, 8, 0, high))
    x = 4 * torch.randn(FLOAT_SHAPES[kind])
    lowered = lower(export(layer, x))
    found, expected = lowered(x).double(), layer.reference(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 if high is None else step)
    assert high is None or (found != expected).double().mean() < 0.01
    assert (count(lowered, "qconv_pointwise"), count(lowered, curve)) == (1, 0)
    # The kernel saturates at 255 alone: a narrower range keeps its quantize.
    assert count(lowered, "quantize_per_tensor") == {None: 1, 255: 2, 127: 3}[high]


LEFT: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu, tanh": lambda y: F.gelu(y, approximate="tanh"),
    "leaky_relu": lambda y: F.leaky_relu(y, 0.2),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "mish": F.mish,
    "hardsigmoid": F.hardsigmoid,
}
"""Tails that the kernel does not have."""


@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize("tail", LEFT)
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d", "conv3d"])
def test_a_tail_that_the_kernel_lacks_stays_after_it(kind: str, tail: str, lower: Lower) -> None:
    step = 2.0**-4
    layer = make(kind, LEFT[tail], Grid(step, 8))
    x = 4 * torch.randn(FLOAT_SHAPES[kind])
    lowered = lower(export(layer, x))
    found, expected = lowered(x).double(), layer.reference(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=step)
    assert (found != expected).double().mean() < 0.01
    # The layer itself runs in integers and gives floats, which the tail reads before it is quantized.
    assert (count(lowered, "qconv_pointwise"), count(lowered, tail.partition(",")[0])) == (1, 1)
    assert count(lowered, "quantize_per_tensor") == 3


@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("kind", ["conv1d", "conv3d"])
@pytest.mark.parametrize("geometry", [{"padding": 1}, {"stride": 2, "padding": 2, "dilation": 2}], ids=str)
def test_one_and_three_dimensions_equal_integers(
    geometry: dict[str, int],
    kind: str,
    quantized: bool,
    clamp: str,
    lower: Lower,
) -> None:
    layer = make(kind, CLAMPS[clamp], Grid(2.0**-3, 20) if quantized else None, **geometry)
    x = 4 * torch.randn(FLOAT_SHAPES[kind])
    lowered = lower(export(layer, x))
    torch.testing.assert_close(lowered(x).double(), layer.reference(x), rtol=0, atol=0)
    assert (count(lowered, "qconv_pointwise"), count(lowered, "aten.conv")) == (1, 0)


@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize("clamp", ["none", "relu"])
def test_a_sum_over_one_dimension_equals_integers(clamp: str, lower: Lower) -> None:
    layer = make("conv1d", CLAMPS[clamp], Grid(2.0**-2, 60), padding=1)
    x, other = 4 * torch.randn(2, 7, 11), 4 * torch.randn(2, 12, 11)
    lowered = lower(export(layer, x, other))
    torch.testing.assert_close(lowered(x, other).double(), layer.reference(x, other), rtol=0, atol=0)
    assert count(lowered, "qconv_sum") == int(lower is lower_eager)


def test_a_view_of_a_kernels_result_is_taken() -> None:
    # The kernel writes channels-last, of which the view that the float model takes does not exist.
    class Viewed(Layer):
        def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
            return super().forward(x, other).view(2, 12, -1)

    layer = Viewed(Weight(12, 7, 3, 3), Grid(), torch.relu)
    x = 4 * torch.randn(FLOAT_SHAPES["conv2d"])
    found = lower_eager(export(layer, x), "any")(x).double()
    torch.testing.assert_close(found, layer.reference(x).reshape(2, 12, -1), rtol=0, atol=0)


TAILS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.hardswish in place": lambda y: F.hardswish(y, inplace=True),
    "nn.Hardswish": nn.Hardswish(),
    "F.silu": F.silu,
    "nn.SiLU in place": nn.SiLU(inplace=True),
    "F.relu6 in place": lambda y: F.relu6(y, inplace=True),
    "nn.ReLU6": nn.ReLU6(),
    "F.hardtanh": lambda y: F.hardtanh(y, -0.5, 0.25),
    "clamp": lambda y: torch.clamp(y, 0.0, 1.5),
    "relu_": torch.relu_,
}


class Written(nn.Module):
    """Layers as models write them, each with the same tail."""

    def __init__(self, tail: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding="same")
        self.along = nn.Conv1d(6, 6, 3, padding="same", dilation=2)
        self.linear = nn.Linear(8, 5)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        y = self.tail(self.along(self.tail(self.conv(x)).mean(3)))
        return self.tail(self.linear(y))


def quantized(model: nn.Module, *batches: Tensor) -> GraphModule:
    exported = torch.export.export(model.eval(), (batches[0],)).module()
    assert isinstance(exported, GraphModule)
    prepared = prepare_pt2e(exported, default_quantizer(target="any"))
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    return convert_pt2e(prepared)


@pytest.mark.parametrize("tail", TAILS)
def test_every_way_to_write_a_tail_is_one_row(tail: str) -> None:
    model, x = Written(TAILS[tail]), torch.randn(2, 3, 8, 8)
    converted = quantized(model, x)
    layers = [entry for entry in coverage(converted) if str(entry.operator).startswith(("aten.conv", "aten.linear"))]
    lowered = lower_eager(converted, "any")
    assert len(layers) == 3
    assert all(" + " in str(entry.row) for entry in layers)
    report = lowered.meta[LOWERING_KEY]
    assert {entry.node for entry in layers} <= set(report.lowered)
    assert not report.declined
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(lowered(x), expected, rtol=0, atol=0.08 * float(expected.abs().max()))


def test_every_chain_of_these_rows_is_tested_here() -> None:
    chains = {row.name: {tuple(post_op.kernel for post_op in c) for c in row.chains} for row in TABLE.rows}
    clamps, curves = {(), ("relu",), ("hardtanh",)}, {("hardswish",), ("swish",)}
    assert chains["conv3d"] == clamps
    assert chains["linear"] >= clamps | curves
    assert chains["conv1d"] == chains["conv2d"] == clamps | curves | {("add",), ("add", "relu")}
