"""Constant nodes of small graphs, compared with a list by hand."""

from typing import Any

import torch
from core_support import Net, calls, export
from torch import Tensor

from qspec_core.graph._folding import compute_constants, constant_nodes


def forward(m: Any, x: Tensor) -> tuple[Tensor, ...]:  # a buffer by name
    first, second = torch.split(m.w.t(), 1)
    noise = torch.rand_like(m.w)
    return x + first, second.exp(), noise * 2, torch.arange(2.0) + 1, (x * m.w).neg()


def test_what_follows_from_constants_alone() -> None:
    w = torch.randn(3, 2)
    module = export(Net(forward, w=w), torch.randn(3, 2)[:1, :1])
    found = constant_nodes(module)
    names = {node.name for node in found if node.op == "call_function"}
    # Random numbers are not the same in every call; what no tensor goes into is a constructor, which stays.
    assert names == {"t", "split", "getitem", "getitem_1", "exp"}
    (exp,) = calls(module, torch.ops.aten.exp.default)
    values = compute_constants(module, [exp])
    assert torch.equal(values[exp], w.t()[1:].exp())
    assert [node.name for node in values] == ["w", "t", "split", "getitem_1", "exp"]
