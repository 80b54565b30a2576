"""Attention in the delegate, against torch's own in the converted graph."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from xnnpack_support import lowered, quantized, steps

WIDTH, HEADS = 16, 2


class Attention(nn.Module):
    """Projections in integers, attention between them, with the options of `scaled_dot_product_attention`."""

    def __init__(self, *, with_heads: bool = True, **options: Any) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.with_heads, self.options = with_heads, options

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = (self.split(part) for part in (self.query(x), self.key(y), self.value(y)))
        found = scaled_dot_product_attention(q, k, v, **self.options)
        joined = found.transpose(1, 2).reshape(x.shape) if self.with_heads else found
        result: Tensor = self.out(joined)
        return result

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), HEADS, -1).transpose(1, 2) if self.with_heads else x


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({}, (5, 5)),
        ({}, (3, 7)),
        ({"is_causal": True}, (6, 6)),
        ({"is_causal": True}, (4, 7)),
        ({"is_causal": True}, (7, 4)),
        ({"scale": 0.7}, (5, 5)),
        ({"with_heads": False}, (5, 6)),
    ],
    ids=["self", "cross", "causal", "causal, more keys", "causal, fewer keys", "scale", "without heads"],
)
def test_attention_runs_in_the_delegate(
    options: dict[str, Any],
    lengths: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(2, length, WIDTH) for length in lengths)
    result = quantized(Attention(**options).eval(), x, y)
    program = lowered(result)
    assert program.delegation.outside == ()
    assert program.delegation.delegates == 1
    wanted, found = result.converted(x, y), program(x, y)
    # A product before the last layer may round to the neighbouring quantized value.
    (step,) = steps(result.converted)
    assert (found - wanted).abs().max() <= 3 * step
    assert (found - wanted).pow(2).mean() <= (0.5 * step) ** 2
    assert wanted.std() > 8 * step


def masks() -> dict[str, Tensor]:
    """Truth values and numbers; of all but the first, the third query sees no key."""
    seen = torch.rand(5, 5) > 0.4
    seen.fill_diagonal_(True)
    none = seen.clone()
    none[2] = False
    numbers = torch.randn(5, 5).masked_fill(~none, -torch.inf)
    lowest = torch.zeros(1, 1, 5, 5).masked_fill(~none, torch.finfo(torch.float32).min)
    return {"some keys": seen, "no key": none, "numbers": numbers, "lowest": lowest, "by query": none[:, :1]}


@pytest.mark.parametrize("kind", ["some keys", "no key", "numbers", "lowest", "by query"])
def test_attention_under_a_mask(kind: str) -> None:
    """A query that sees no key has the result 0 in torch, where -inf or False hides it."""
    torch.manual_seed(0)
    mask, x = masks()[kind], torch.randn(2, 5, WIDTH)
    result = quantized(Attention(attn_mask=mask).eval(), x, x)
    program = lowered(result)
    assert set(program.delegation.outside) <= {"_to_dim_order_copy", "gt", "amax"}
    torch.testing.assert_close(program(x, x), result.converted(x, x), rtol=0, atol=0.05)


def test_masks_that_differ_within_a_batch_are_left_to_executorch() -> None:
    torch.manual_seed(0)
    mask, x = torch.rand(2, 1, 5, 5) > 0.4, torch.randn(2, 5, WIDTH)
    result = quantized(Attention(attn_mask=mask).eval(), x, x)
    program = lowered(result)
    assert "where" in program.delegation.outside
    torch.testing.assert_close(program(x, x), result.converted(x, x), rtol=0, atol=0.05)


class Unbound(nn.Module):
    """One layer's output in three parts, as attention takes them apart."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer, self.dim = nn.Linear(WIDTH, 3 * WIDTH), dim

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = self.layer(x).view(x.size(0), x.size(1), 3, WIDTH).unbind(self.dim)
        return parts[0], parts[-1]


@pytest.mark.parametrize("dim", [2, -2, 1, -1], ids=str)
def test_items_along_a_dimension_stay_integers(dim: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, WIDTH)
    result = quantized(Unbound(dim).eval(), x)
    program = lowered(result)
    assert program.delegation.outside == ()
    assert list(program.delegation.rows.values()).count("slice") == 2
    for found, wanted, exact in zip(program(x), result.converted(x), result.exported(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.05)
        assert (found - exact).abs().max() < 0.1
