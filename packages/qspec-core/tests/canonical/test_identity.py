"""Operators that do nothing in evaluation are removed; the values of the float model stay."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_support import Net, canonical_of, targets

Function = Callable[..., Any]  # a test's own forward


@pytest.mark.parametrize("function", [F.dropout, F.feature_dropout if hasattr(F, "feature_dropout") else F.dropout2d])
def test_dropout_in_evaluation_is_removed(function: Function) -> None:
    module = canonical_of(Net(lambda _, x: function(x * 2, 0.5, False) + 1), torch.randn(2, 3, 4, 4))
    assert not [target for target in targets(module) if "dropout" in target]
    assert list(module.meta["qspec_folded"].values()) == ["identity in evaluation"]


@pytest.mark.parametrize(
    ("function", "stays"),
    [
        (lambda x: x.to(torch.float32), False),
        (lambda x: x.float(), False),
        (lambda x: x.type_as(x), False),
        (lambda x: x.to("cpu", torch.float32), False),
        (lambda x: x.to(torch.float32, copy=True), True),
        (lambda x: x.to(memory_format=torch.channels_last), True),
        (lambda x: x.double().float(), True),
    ],
)
def test_casts_that_change_nothing_are_removed(function: Function, stays: bool) -> None:
    module = canonical_of(Net(lambda _, x: function(x * 2) + 1), torch.randn(2, 3, 4, 4))
    casts = [target for target in targets(module) if "aten.to." in target or "type_as" in target]
    assert bool(casts) is stays
