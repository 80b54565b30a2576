"""Einsums and tensordots in canonical form against the float model."""

from typing import Any

import pytest
import torch
from core_support import Net, canonical_of, targets
from torch import Tensor, nn


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("btd,dnh->btnh", (6, 2, 5)),
        ("btd,dnh->bnth", (6, 2, 5)),
        ("btd,nhd->tbhn", (2, 5, 6)),
        ("btd,od->bto", (5, 6)),
        ("btd,do->bot", (6, 5)),
        ("btd,tdo->bo", (3, 6, 5)),
        ("btd,d->bt", (6,)),
        ("...d,dh->...h", (6, 5)),
        ("btd,hd->hbt", (5, 6)),
        ("btd,bth->dh", (2, 3, 5)),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_einsums_with_a_constant_become_linear(equation: str, shape: tuple[int, ...], swapped: bool) -> None:
    if swapped:
        terms, _, result = equation.partition("->")
        equation = ",".join(reversed(terms.split(","))) + f"->{result}"

    def forward(self: Net, x: Tensor) -> Tensor:
        return torch.einsum(equation, *([self.w, x] if swapped else [x, self.w]))

    module = canonical_of(Net(forward, w=nn.Parameter(torch.randn(shape))), torch.randn(2, 3, 6))
    assert targets(module).count("aten.linear.default") == 1
    assert "aten.einsum.default" not in targets(module)


@pytest.mark.parametrize(
    ("dims", "shape"), [(1, (6, 5)), (([1, 2], [2, 0]), (6, 4, 3)), (([-1], [1]), (5, 6, 2))], ids=str
)
def test_tensordots_with_a_constant_become_linear(dims: Any, shape: tuple[int, ...]) -> None:
    weight = nn.Parameter(torch.randn(shape))
    module = canonical_of(Net(lambda self, x: torch.tensordot(x, self.w, dims=dims), w=weight), torch.randn(2, 3, 6))
    assert targets(module).count("aten.linear.default") == 1
    assert "aten.tensordot.default" not in targets(module)


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("btd,bdo->bto", (2, 6, 5)),  # a matrix for each item
        ("btd,o->btdo", (5,)),  # nothing is summed over
        ("btd,dd->bt", (6, 6)),
        ("btd,do->bt", (6, 5)),
        ("btd,dt->btd", (6, 3)),
    ],
)
def test_other_einsums_stay(equation: str, shape: tuple[int, ...]) -> None:
    model = Net(lambda self, x: torch.einsum(equation, x, self.w), w=nn.Parameter(torch.randn(shape)))
    assert targets(canonical_of(model, torch.randn(2, 3, 6))) == ["aten.einsum.default"]
