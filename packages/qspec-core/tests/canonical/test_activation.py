"""Clamps in canonical form against the float model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_support import Net, aten, calls, canonical, canonical_of, export, targets

from qspec_core.graph import argument

Function = Callable[..., Any]  # a test's own forward


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [
        (F.relu6, 0.0, 6.0),
        (lambda x: x.clamp(-0.5, 0.5), -0.5, 0.5),
        (lambda x: x.clamp(0, 1), 0.0, 1.0),
        (lambda x: F.hardtanh(x, -2, 0.25), -2.0, 0.25),
        (lambda x: F.hardtanh_(x + 0), -1.0, 1.0),
        (lambda x: (x + 0).clamp_(-0.5, 0.5), -0.5, 0.5),
    ],
)
def test_clamps_between_two_bounds_become_hardtanh(function: Function, low: float, high: float) -> None:
    module = canonical_of(Net(lambda _, x: function(3 * x)), torch.randn(5, 7))
    (node,) = calls(module, aten.hardtanh.default)
    assert (argument(node, "min_val"), argument(node, "max_val")) == (low, high)
    assert all(isinstance(bound, float) for bound in node.args[1:])


@pytest.mark.parametrize(
    "function",
    [
        F.relu,
        lambda x: x.clamp(min=0),
        lambda x: x.clamp_min(0.0),
        lambda x: x.clamp(0, float("inf")),
        lambda x: F.hardtanh(x, 0, float("inf")),
        lambda x: (x + 0).relu_(),
        lambda x: F.relu(x + 0, inplace=True),
    ],
)
def test_clamps_at_zero_become_relu(function: Function) -> None:
    module = canonical_of(Net(lambda _, x: function(x * 1.5)), torch.randn(5, 7))
    assert targets(module)[-1] == "aten.relu.default"


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda x: x.clamp(max=0.5), aten.clamp.default),
        (lambda x: x.clamp_min(-0.5), aten.clamp.default),
        (lambda x: x.clamp_max(0.5), aten.clamp.default),
        (lambda x: x.clamp(x - 1, x + 1), aten.clamp.Tensor),
        (lambda x: x.to(torch.int64).clamp(0.5, 2.5), aten.clamp.default),
        (lambda x: x.to(torch.int64).clamp(0, 2), aten.clamp.default),
        (lambda x: x.to(torch.int64).clamp_min(0), aten.clamp_min.default),
    ],
)
def test_other_clamps_stay(function: Function, kept: Any) -> None:
    module = canonical_of(Net(lambda _, x: function(x * 3)), torch.randn(5, 7))
    assert len(calls(module, kept)) == 1


def test_clamp_keeps_its_name_and_metadata() -> None:
    exported = export(Net(lambda _, x: F.relu6(x)), torch.randn(3))
    (before,) = calls(exported, aten.relu6.default, aten.hardtanh.default)
    (after,) = calls(canonical(exported), aten.hardtanh.default)
    assert after.name == before.name
    assert after.meta["val"] is before.meta["val"]
