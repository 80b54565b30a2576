"""The linear row against integer arithmetic in plain torch, exact since every scale is a power of two."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from x86_support import FORMS, Grid, Lower, Weight, count, export

from qspec_x86 import lower_eager


def hardtanh(y: Tensor) -> Tensor:
    return nn.functional.hardtanh(y, -0.75, 2.5)


CLAMPS: dict[str, Callable[[Tensor], Tensor]] = {"none": torch.clone, "relu": torch.relu, "hardtanh": hardtanh}


class Layer(nn.Module):
    """quantize -> linear [-> clamp] [-> quantize]."""

    def __init__(
        self, weight: Weight, x_grid: Grid, clamp: str = "none", y_grid: Grid | None = None, *, has_bias: bool = True
    ) -> None:
        super().__init__()
        self.weight, self.clamp, self.x_grid, self.y_grid = weight, clamp, x_grid, y_grid
        outputs = weight.integers.shape[0]
        self.bias = nn.Parameter(torch.randint(-40, 40, (outputs,)) * 2.0**-6) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(self.x_grid(x), self.weight(), self.bias)
        if self.clamp != "none":
            y = CLAMPS[self.clamp](y)
        return y if self.y_grid is None else self.y_grid(y)

    def reference(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.double()
        y = CLAMPS[self.clamp](nn.functional.linear(self.x_grid.values(x), self.weight.values(), bias))
        return y if self.y_grid is None else self.y_grid.values(y)


@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("shape", [(13,), (1, 13), (5, 13), (2, 3, 13), (2, 1, 3, 13)], ids=str)
def test_lowered_linear_equals_integers(shape: tuple[int, ...], quantized: bool, clamp: str, lower: Lower) -> None:
    y_grid = Grid(2.0**-3, 20) if quantized else None
    layer = Layer(Weight(7, 13), Grid(zero_point=113), clamp, y_grid)
    x = 4 * torch.randn(shape)
    lowered = lower(export(layer, x))
    torch.testing.assert_close(lowered(x).double(), layer.reference(x), rtol=0, atol=0)
    assert (count(lowered, "qconv_pointwise"), count(lowered, "linear")) == (1, 0)
    assert count(lowered, "quantize_per_tensor") == (2 if quantized else 1)


@pytest.mark.parametrize("lower", FORMS)
def test_without_bias_strided_and_empty_inputs(lower: Lower) -> None:
    layer = Layer(Weight(64, 33), Grid(), has_bias=False)
    rows = torch.export.Dim("rows", min=0, max=64)
    lowered = lower(export(layer, torch.randn(6, 33), dynamic_shapes=({0: rows},)))
    for x in (torch.randn(33, 6).t(), torch.randn(12, 33)[::2], torch.randn(64, 66)[:, ::2], torch.randn(1, 33)):
        torch.testing.assert_close(lowered(4 * x).double(), layer.reference(4 * x), rtol=0, atol=0)


@pytest.mark.parametrize("lower", FORMS)
def test_two_symbolic_sizes(lower: Lower) -> None:
    layer = Layer(Weight(9, 12), Grid(zero_point=100), "relu", Grid(2.0**-3))
    sizes = {0: torch.export.Dim("batch", max=8), 1: torch.export.Dim("length", max=32)}
    lowered = lower(export(layer, torch.randn(2, 5, 12), dynamic_shapes=(sizes,)))
    for shape in ((2, 5, 12), (1, 7, 12), (3, 1, 12)):
        x = 4 * torch.randn(shape)
        torch.testing.assert_close(lowered(x).double(), layer.reference(x), rtol=0, atol=0)


def test_a_transposed_weight_is_read_by_its_strides() -> None:
    # Packing reads storage as if it were contiguous where it is not told otherwise: garbage, without a word.
    weight = Weight(10, 33)
    weight.integers = torch.randint(-64, 65, (33, 10), dtype=torch.int8).t()
    layer = Layer(weight, Grid(zero_point=9))
    x = 4 * torch.randn(4, 33)
    lowered = lower_eager(export(layer, x), "any")
    torch.testing.assert_close(lowered(x).double(), layer.reference(x), rtol=0, atol=0)
