"""Checks of operators that move integers, each between two kernels."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from x86_support import Grid, Lower, count, export

from qspec_x86 import LOWERING_KEY, lower_eager

Move = Callable[[Tensor], Tensor]


class Moved(nn.Module):
    """quantize -> move -> quantize on the same grid: the island between two kernels."""

    def __init__(self, grid: Grid, move: Move, out: Grid | None = None) -> None:
        super().__init__()
        self.grid, self.move, self.out = grid, move, grid if out is None else out

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.move(self.grid(x)))
        return result

    def reference(self, x: Tensor) -> Tensor:
        result: Tensor = self.out.values(self.move(self.grid.values(x)))
        return result


def assert_moves_integers(lower: Lower, name: str, move: Move, zero_point: int) -> None:
    """Integers that are moved equal floats that are moved."""
    model = Moved(Grid(zero_point=zero_point), move)
    x = 4 * torch.randn(1, 6, 8, 7)
    lowered = lower(export(model, x))
    torch.testing.assert_close(lowered(x).double(), model.reference(x), rtol=0, atol=0)
    assert name in lowered.meta[LOWERING_KEY].lowered.values()
    # One quantize before and one dequantize after: everything between them runs on integers.
    assert count(lowered, "dequantize_per_tensor") == 1
    assert count(lowered, "quantize_per_tensor") == 2


def assert_stays_in_float(move: Move) -> None:
    """A move to other parameters is declined."""
    model = Moved(Grid(zero_point=113), move, Grid(2.0**-4, 60))
    x = 4 * torch.randn(2, 6, 8, 7)
    lowered = lower_eager(export(model, x), "any")
    torch.testing.assert_close(lowered(x).double(), model.reference(x), rtol=0, atol=0)
    (reason,) = lowered.meta[LOWERING_KEY].declined.values()
    assert "other parameters" in reason.detail
