"""Pads in canonical form against the float model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_support import Net, aten, calls, canonical_of, targets
from torch import Tensor, nn

from qspec_core.graph import argument

Function = Callable[..., Any]  # a test's own forward


@pytest.mark.parametrize(
    ("pad", "padding", "want"),
    [
        ((1, 1, 1, 1), 0, [1, 1]),
        ((1, 1, 2, 2), 0, [2, 1]),  # the last dimension comes first in a pad, the first one in a convolution
        ((2, 2), 0, [0, 2]),
        ((1, 1, 1, 1), (2, 3), [3, 4]),
        ((0, 0, 3, 3), 1, [4, 1]),
    ],
)
def test_pads_with_equal_sides_go_into_the_convolution(pad: tuple[int, ...], padding: Any, want: list[int]) -> None:
    model = Net(lambda self, x: self.conv(F.pad(x, pad)), conv=nn.Conv2d(3, 4, 3, padding=padding))
    module = canonical_of(model, torch.randn(2, 3, 9, 8))
    (conv,) = calls(module, aten.conv2d.default)
    assert argument(conv, "padding") == want
    assert calls(module, aten.pad.default) == []


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_pads_with_equal_sides_of_every_rank(rank: int) -> None:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](2, 3, 3)
    sides = [side for n in range(rank) for side in (n + 1, n + 1)]
    module = canonical_of(Net(lambda self, x: self.conv(F.pad(x, sides)), conv=conv), torch.randn(1, 2, *[5] * rank))
    assert len(targets(module)) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.pad(x, (0, 1, 0, 1)),
        lambda x: F.pad(x, (1, 1, 1, 0)),
        lambda x: F.pad(x, (1, 1), value=0.5),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: F.pad(x, (-1, -1)),
        lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 1)),
    ],
)
def test_other_pads_stay(function: Function) -> None:
    module = canonical_of(Net(lambda self, x: self.conv(function(x)), conv=nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 9, 8))
    assert len(targets(module)) == 2


def test_pad_that_something_else_reads_too_stays_for_it() -> None:
    def forward(self: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x, (1, 1, 1, 1))
        return self.conv(padded), padded + 1  # type: ignore[operator]  # a submodule by name

    module = canonical_of(Net(forward, conv=nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 9, 8))
    (conv,) = calls(module, aten.conv2d.default)
    assert argument(conv, "padding") == [1, 1]
    assert len(calls(module, aten.pad.default)) == 1


def test_constant_pad_of_a_decomposed_graph_becomes_pad() -> None:
    module = canonical_of(Net(lambda _, x: F.pad(x, (0, 1), value=0.5)), torch.randn(2, 3), decompose=True)
    (pad,) = calls(module)
    assert pad.target is aten.pad.default
    assert argument(pad, "value") == 0.5
