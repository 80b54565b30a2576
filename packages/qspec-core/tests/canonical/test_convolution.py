"""Convolutions in canonical form against the float model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_support import aten, calls, canonical_of, targets
from torch import nn

from qspec_core.graph import argument

Function = Callable[..., Any]  # a test's own forward


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch pads a copy for even kernels, and says so once
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (2, 1), (4, 3)])
def test_string_padding_becomes_numbers(rank: int, padding: str, kernel: int, dilation: int) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    conv = kind(2, 3, kernel, padding=padding, dilation=dilation)
    module = canonical_of(conv, torch.randn(1, 2, *[11] * rank))
    assert targets(module)[-1] == f"aten.conv{rank}d.default"
    uneven = padding == "same" and dilation * (kernel - 1) % 2
    assert len(calls(module, aten.pad.default)) == uneven
    for pad in calls(module, aten.pad.default):
        assert pad.meta["val"].shape == (1, 2, *[11 + dilation * (kernel - 1)] * rank)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_string_padding_with_one_equal_and_one_unequal_side() -> None:
    module = canonical_of(nn.Conv2d(2, 3, (2, 3), padding="same"), torch.randn(1, 2, 7, 6))
    (pad,) = calls(module, aten.pad.default)
    assert argument(pad, "pad") == [1, 1, 0, 1]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_string_padding_without_a_batch_dimension() -> None:
    module = canonical_of(nn.Conv1d(2, 3, 2, padding="same"), torch.randn(2, 7))
    (pad,) = calls(module, aten.pad.default)
    assert pad.meta["val"].shape == (2, 8)


TRANSPOSED: list[Function] = [
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_decomposed_convolution_gets_its_own_operator_back(rank: int, transposed: bool, bias: bool) -> None:
    options: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": bias}
    if transposed:
        conv = TRANSPOSED[rank - 1](4, 6, 3, output_padding=1, **options)
        want = "conv_transpose1d.default" if rank == 1 else f"conv_transpose{rank}d.input"
    else:
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](4, 6, 3, **options)
        want = f"conv{rank}d.default"
    module = canonical_of(conv, torch.randn(1, 4, *[9] * rank), decompose=True)
    assert targets(module) == [f"aten.{want}"]
