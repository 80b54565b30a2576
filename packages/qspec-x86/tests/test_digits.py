"""Two networks trained on scikit-learn's digits lose no more than half a point of test accuracy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from qspec_core import Mode, quantize
from qspec_x86 import BACKEND, LOWERING_KEY, lower_eager

TESTED, EPOCHS, BATCH = 797, 25, 100
MOST_LOST = 0.005


class Convolutions(nn.Module):
    """Three convolutions, one with a residual sum, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.down, self.head = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x[:, None]))
        y = torch.relu(self.down(torch.relu(self.again(y) + y)))
        result: Tensor = self.head(y.flatten(1))
        return result


class Attention(nn.Module):
    """One block of a transformer over the rows of a picture."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(8, width), nn.Parameter(0.1 * torch.randn(8, width))
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x) + self.places
        query, key, value = self.mixed(self.before(y)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        y = y + self.out(attended.transpose(1, 2).flatten(2))
        y = y + self.back(nn.functional.gelu(self.hidden(self.after(y))))
        result: Tensor = self.head(y.flatten(1))
        return result


class Trained(NamedTuple):
    model: nn.Module
    seen: Tensor
    tested: Tensor
    wanted: Tensor


def correct(run: Callable[[Tensor], Tensor], trained: Trained) -> float:
    """Share of the pictures held back that are named rightly."""
    with torch.no_grad():
        return float((run(trained.tested).argmax(1) == trained.wanted).double().mean())


@pytest.fixture(scope="module", params=[Convolutions, Attention], ids=["convolutions", "attention"])
def trained(request: pytest.FixtureRequest) -> Trained:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    order = torch.randperm(len(digits.images))
    pictures = torch.tensor(digits.images, dtype=torch.float32)[order] / 16
    names = torch.tensor(digits.target)[order]
    model = request.param()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    seen, wanted = pictures[TESTED:], names[TESTED:]
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(seen)), BATCH):
            loss: Any = nn.functional.cross_entropy(model(seen[batch]), wanted[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found = Trained(model.eval(), seen, pictures[:TESTED], names[:TESTED])
    assert correct(model, found) > 0.95
    return found


@pytest.mark.parametrize("mode", [Mode.STATIC, Mode.DYNAMIC], ids=str)
def test_half_a_point_is_lost_at_most(trained: Trained, mode: Mode) -> None:
    batches = [(trained.seen[:TESTED],)]
    result = quantize(trained.model, (trained.tested,), calibration=batches, backend=BACKEND, mode=mode, target="any")
    assert len(result.coverage.quantized_layers) == len(result.coverage.layers)
    lowered = lower_eager(result.converted)
    assert {entry.node for entry in result.coverage.quantized_layers} <= set(lowered.meta[LOWERING_KEY].lowered)
    assert correct(lowered, trained) >= correct(trained.model, trained) - MOST_LOST
