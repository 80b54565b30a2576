"""Max pooling of integers between two kernels, against plain float64 arithmetic."""

import pytest
import torch
from torch import Tensor, nn
from x86_moving import Move, assert_moves_integers, assert_stays_in_float
from x86_support import FORMS, Grid, Lower, count, export

from qspec_x86 import lower_eager


def pool(x: Tensor) -> Tensor:
    return nn.functional.max_pool2d(x, 3, 2, 1)


def pool_ceil(x: Tensor) -> Tensor:
    return nn.functional.max_pool2d(x, (2, 3), ceil_mode=True)


@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize("zero_point", [0, 113, 255])
@pytest.mark.parametrize("move", [pool, pool_ceil])
def test_pooled_integers_equal_pooled_floats(move: Move, zero_point: int, lower: Lower) -> None:
    assert_moves_integers(lower, "max_pool2d", move, zero_point)


def test_other_parameters_after_it_stay_in_float() -> None:
    assert_stays_in_float(pool)


class FloatReader(nn.Module):
    """A moved tensor is read as integers and as float."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = nn.functional.max_pool2d(self.grid(x), 2)
        return self.grid(y), torch.sigmoid(y)


def test_a_float_reader_gets_a_dequantize_of_its_own() -> None:
    model = FloatReader(Grid(zero_point=50))
    x = 4 * torch.randn(2, 3, 8, 8)
    lowered = lower_eager(export(model, x), "any")
    assert count(lowered, "quantized.max_pool2d") == 1
    for found, expected in zip(lowered(x), model(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
