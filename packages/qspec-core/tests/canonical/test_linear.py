"""Matrix products in canonical form against the float model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_support import Net, calls, canonical_of, targets
from torch import nn

from qspec_core.graph import argument, constant_value

Function = Callable[..., Any]  # a test's own forward


WEIGHT = nn.Parameter(torch.randn(6, 5))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w, b: x @ w,
        lambda x, w, b: torch.mm(x, w),
        lambda x, w, b: torch.addmm(b, x, w),
        lambda x, w, b: x @ w.t(),
        lambda x, w, b: x @ w.T,
        lambda x, w, b: x @ w.mT,
        lambda x, w, b: x @ w.transpose(0, 1),
        lambda x, w, b: x @ w.transpose(-1, -2),
        lambda x, w, b: x @ w.permute(1, 0),
        lambda x, w, b: x @ w.t().t().t(),
        lambda x, w, b: torch.addmm(b, x, w.t()),
        lambda x, w, b: F.linear(x, w.t(), b),
    ],
)
def test_products_with_a_constant_become_linear(function: Function) -> None:
    x = torch.randn(3, 6)
    for shape in ((6, 5), (5, 6)):
        try:
            function(x, torch.empty(shape), torch.empty(5))
        except RuntimeError:
            continue
        w = nn.Parameter(torch.randn(shape))
        module = canonical_of(Net(lambda self, x: function(x, self.w, self.b), w=w, b=nn.Parameter(torch.randn(5))), x)
        assert targets(module) == ["aten.linear.default"]
        held = constant_value(module, argument(calls(module)[0], "weight"))
        assert held is not None
        assert held.data_ptr() == w.data_ptr()  # a view: no weight is copied
        return
    pytest.fail("no shape fits")


@pytest.mark.parametrize("shape", [(6,), (2, 3, 6)], ids=str)
def test_matmul_of_any_rank_with_a_matrix(shape: tuple[int, ...]) -> None:
    module = canonical_of(Net(lambda self, x: x @ self.w, w=WEIGHT), torch.randn(shape))
    assert targets(module) == ["aten.linear.default"]


@pytest.mark.parametrize(
    ("function", "want"),
    [
        (lambda w, x: w @ x, ["transpose.int", "linear.default", "transpose.int"]),
        (
            lambda w, x: w @ x.mT.contiguous().transpose(1, 2),
            ["transpose.int", "contiguous", "linear.default", "transpose.int"],
        ),
        (lambda w, x: w.T.mT @ x[0], ["select.int", "transpose.int", "linear.default", "transpose.int"]),
        (lambda w, x: torch.mm(w, x[0]), ["select.int", "transpose.int", "linear.default", "transpose.int"]),
        (lambda w, x: w @ x[0, :, 0], ["select.int", "select.int", "linear.default"]),
    ],
)
def test_products_that_begin_with_a_constant_become_linear(function: Function, want: list[str]) -> None:
    module = canonical_of(
        Net(lambda self, x: function(self.w, x), w=nn.Parameter(torch.randn(5, 6))), torch.randn(2, 6, 3)
    )
    names = [name.removeprefix("aten.") for name in targets(module) if "slice" not in name]
    assert [name.partition(".")[0] for name in names] == [name.partition(".")[0] for name in want]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: torch.bmm(x, w.t().expand(2, 6, 5)),
        lambda x, w: torch.bmm(x, w.permute(1, 0).unsqueeze(0).expand(2, -1, -1).view(2, 6, 5)),
        lambda x, w: torch.matmul(x, w.t().expand(2, 6, 5)),
    ],
)
def test_products_with_one_matrix_for_a_whole_batch_become_linear(function: Function) -> None:
    module = canonical_of(
        Net(lambda self, x: function(x, self.w), w=nn.Parameter(torch.randn(5, 6))), torch.randn(2, 3, 6)
    )
    assert targets(module) == ["aten.linear.default"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: torch.bmm(x, w.expand(2, 6, 6) * 1),
        lambda x, w: x @ w.t().contiguous(),
        lambda x, w: x[0] @ w.expand(2, 6, 6),
        lambda x, w: x[:1] @ w.expand(2, 6, 6),
        lambda x, w: x @ w.t().reshape(2, 18).view(6, 6),
    ],
)
def test_products_with_a_matrix_that_is_copied_stay(function: Function) -> None:
    module = canonical_of(
        Net(lambda self, x: function(x, self.w), w=nn.Parameter(torch.randn(6, 6))), torch.randn(2, 3, 6)
    )
    assert "aten.linear.default" not in targets(module)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w, b: torch.addmm(b, x, w, beta=0.5),
        lambda x, w, b: torch.addmm(b, x, w, alpha=2),
        lambda x, w, b: torch.addmm(x[:, :5], x, w),
        lambda x, w, b: torch.addmm(b.expand(3, 5), x, w),
        lambda x, w, b: x @ (w * 2),
        lambda x, w, b: x @ w[:, 0],
    ],
)
def test_other_products_stay(function: Function) -> None:
    model = Net(lambda self, x: function(x, self.w, self.b), w=WEIGHT, b=nn.Parameter(torch.randn(5)))
    module = canonical_of(model, torch.randn(3, 6))
    assert "aten.linear.default" not in targets(module)


def test_decomposed_linear_is_found_again() -> None:
    module = canonical_of(nn.Linear(6, 5), torch.randn(2, 3, 6), decompose=True)
    assert targets(module).count("aten.linear.default") == 1
    assert "aten.addmm.default" not in targets(module)
