"""Rows that move integers: each between two convolutions, against plain float64 arithmetic."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qspec_x86 import LOWERING_KEY, TABLE, lower_eager, lower_portable

FORMS = [lower_eager, lower_portable]
Move = Callable[[Tensor], Tensor]


def pool(x: Tensor) -> Tensor:
    return nn.functional.max_pool2d(x, 3, 2, 1)


def pool_ceil(x: Tensor) -> Tensor:
    return nn.functional.max_pool2d(x, (2, 3), ceil_mode=True)


def cat(x: Tensor) -> Tensor:
    return torch.cat([x, x], 1)


def pad(x: Tensor) -> Tensor:
    return nn.functional.pad(x, (0, 1, 0, 1))


def pad_value(x: Tensor) -> Tensor:
    return nn.functional.pad(x, (1, 2), value=-0.5)


def flatten(x: Tensor) -> Tensor:
    return torch.flatten(x, 1)


def unflatten(x: Tensor) -> Tensor:
    result: Tensor = torch.unflatten(x, 1, (2, 3))
    return result


def view(x: Tensor) -> Tensor:
    return x.view(2, -1)


def reshape(x: Tensor) -> Tensor:
    return x.reshape(3, -1)


def permute(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def transpose(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def squeeze(x: Tensor) -> Tensor:
    return x.squeeze()


def squeeze_dim(x: Tensor) -> Tensor:
    return x.squeeze(0)


def squeeze_dims(x: Tensor) -> Tensor:
    return x.squeeze((0,))


def unsqueeze(x: Tensor) -> Tensor:
    return x.unsqueeze(1)


def expand(x: Tensor) -> Tensor:
    return x.expand(4, -1, -1, -1)


def slices(x: Tensor) -> Tensor:
    return x[:, 1:5:2]


def select(x: Tensor) -> Tensor:
    return x.select(1, 2)


def contiguous(x: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.contiguous.default(x)
    return result


MOVES: dict[str, tuple[Move, ...]] = {
    "max_pool2d": (pool, pool_ceil),
    "cat": (cat,),
    "pad": (pad, pad_value),
    "flatten": (flatten,),
    "unflatten": (unflatten,),
    "view": (view,),
    "reshape": (reshape,),
    "permute": (permute,),
    "transpose": (transpose,),
    "squeeze": (squeeze,),
    "squeeze.dim": (squeeze_dim,),
    "squeeze.dims": (squeeze_dims,),
    "unsqueeze": (unsqueeze,),
    "expand": (expand,),
    "slice": (slices,),
    "select": (select,),
    "contiguous": (contiguous,),
    "clone": (torch.clone,),
}
CASES = [(name, move) for name, moves in MOVES.items() for move in moves]


class Moved(nn.Module):
    """quantize -> move -> quantize on the same grid: the island between two kernels."""

    def __init__(self, grid: Any, move: Move, out: Any = None) -> None:
        super().__init__()
        self.grid, self.move, self.out = grid, move, grid if out is None else out

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.move(self.grid(x)))
        return result

    def reference(self, x: Tensor) -> Tensor:
        result: Tensor = self.out.values(self.move(self.grid.values(x)))
        return result


@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize("zero_point", [0, 113, 255])
@pytest.mark.parametrize(("name", "move"), CASES)
def test_moved_integers_equal_moved_floats(
    hand: SimpleNamespace, name: str, move: Move, zero_point: int, lower: Callable[..., Any]
) -> None:
    model = Moved(hand.Grid(zero_point=zero_point), move)
    x = 4 * torch.randn(1, 6, 8, 7)
    lowered = lower(hand.export(model, x), "any")
    torch.testing.assert_close(lowered(x).double(), model.reference(x), rtol=0, atol=0)
    assert name in lowered.meta[LOWERING_KEY].lowered.values()
    # One quantize before and one dequantize after: everything between them runs on integers.
    assert hand.count(lowered, "dequantize_per_tensor") == 1
    assert hand.count(lowered, "quantize_per_tensor") == 2


@pytest.mark.parametrize("move", [pool, cat, pad, pad_value])
def test_other_parameters_behind_it_stay_in_float(hand: SimpleNamespace, move: Move) -> None:
    model = Moved(hand.Grid(zero_point=113), move, hand.Grid(2.0**-4, 60))
    x = 4 * torch.randn(2, 6, 8, 7)
    lowered = lower_eager(hand.export(model, x), "any")
    torch.testing.assert_close(lowered(x).double(), model.reference(x), rtol=0, atol=0)
    (reason,) = lowered.meta[LOWERING_KEY].declined.values()
    assert "other parameters" in reason.detail


class CatOfTwo(nn.Module):
    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = self.first(torch.cat([self.first(x), self.second(y)], 1))
        return result


def test_cat_of_different_grids_stays_in_float(hand: SimpleNamespace) -> None:
    model = CatOfTwo(hand.Grid(), hand.Grid(2.0**-3))
    x, y = torch.rand(2, 3, 4, 4), 9 * torch.rand(2, 5, 4, 4)
    lowered = lower_eager(hand.export(model, x, y), "any")
    torch.testing.assert_close(lowered(x, y), model(x, y), rtol=0, atol=0)
    (reason,) = lowered.meta[LOWERING_KEY].declined.values()
    assert "different parameters" in reason.detail


class FloatReader(nn.Module):
    """A moved tensor is read as integers and as float."""

    def __init__(self, grid: Any) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = nn.functional.max_pool2d(self.grid(x), 2)
        return self.grid(y), torch.sigmoid(y)


def test_a_float_reader_gets_a_dequantize_of_its_own(hand: SimpleNamespace) -> None:
    model = FloatReader(hand.Grid(zero_point=50))
    x = 4 * torch.randn(2, 3, 8, 8)
    lowered = lower_eager(hand.export(model, x), "any")
    assert hand.count(lowered, "quantized.max_pool2d") == 1
    for found, expected in zip(lowered(x), model(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_every_sharing_row_is_tested_here() -> None:
    assert {row.name for row in TABLE.rows if not row.has_weight} == set(MOVES)
