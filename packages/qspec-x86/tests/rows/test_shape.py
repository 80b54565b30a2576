"""Rows that move integers: each between two convolutions, against plain float64 arithmetic."""

import pytest
import torch
from torch import Tensor, nn
from x86_moving import Move, assert_moves_integers, assert_stays_in_float
from x86_support import FORMS, Grid, Lower, export

from qspec_x86 import LOWERING_KEY, TABLE, lower_eager


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


@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize("zero_point", [0, 113, 255])
@pytest.mark.parametrize(("name", "move"), CASES)
def test_moved_integers_equal_moved_floats(name: str, move: Move, zero_point: int, lower: Lower) -> None:
    assert_moves_integers(lower, name, move, zero_point)


@pytest.mark.parametrize("move", [cat, pad, pad_value])
def test_other_parameters_after_it_stay_in_float(move: Move) -> None:
    assert_stays_in_float(move)


class CatOfTwo(nn.Module):
    def __init__(self, first: Grid, second: Grid) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = self.first(torch.cat([self.first(x), self.second(y)], 1))
        return result


def test_cat_of_different_grids_stays_in_float() -> None:
    model = CatOfTwo(Grid(), Grid(2.0**-3))
    x, y = torch.rand(2, 3, 4, 4), 9 * torch.rand(2, 5, 4, 4)
    lowered = lower_eager(export(model, x, y), "any")
    torch.testing.assert_close(lowered(x, y), model(x, y), rtol=0, atol=0)
    (reason,) = lowered.meta[LOWERING_KEY].declined.values()
    assert "different parameters" in reason.detail


def test_every_sharing_row_is_tested_here() -> None:
    assert {row.name for row in TABLE.rows if not row.has_weight} == {*MOVES, "max_pool2d"}
