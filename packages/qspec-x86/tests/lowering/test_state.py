"""Models that mutate buffers, call after call, in every form."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from x86_support import FORMS, convert, sqnr

from qspec_x86 import default_quantizer, load_package, package

SAME_DB = 40.0
"""Sums in another order: a value in the middle of two steps may be rounded to either side."""


class Stateful(nn.Module):
    """A running mean, a cache that is written at a position, and a counter."""

    mean: Tensor
    cache: Tensor
    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.key, self.head = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(8, 4)
        self.register_buffer("mean", torch.zeros(1, 16))
        self.register_buffer("cache", torch.zeros(6, 8))
        self.register_buffer("step", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.mean.mul_(0.5).add_(x.mean(0, keepdim=True))
        y = self.layer(x + self.mean)
        self.cache.index_copy_(0, self.step, self.key(y)[:1])
        self.step.add_(1)
        return y, self.head(self.cache)


@torch.no_grad()
def test_every_form_follows_the_state_of_the_float_model(tmp_path: Path) -> None:
    model, batches = Stateful(), [(torch.randn(4, 16) + 1,) for _ in range(4)]
    converted = convert(default_quantizer(), model, *batches[0], batches=batches)
    path = package(converted, batches[0], tmp_path / "state.pt2")
    loaded = load_package(path)
    loaded(*batches[0])
    # A copy starts from the first state, whatever the package has seen.
    running = [copy.deepcopy(loaded), load_package(path), *(lower(converted) for lower in FORMS)]
    converted = copy.deepcopy(converted)
    for batch in batches:
        expected = converted(*batch)
        for wanted, given in zip(model(*batch), expected, strict=True):
            assert sqnr(wanted, given) > 25
        for program in running:
            for found, given in zip(program(*batch), expected, strict=True):
                assert sqnr(given, found) > SAME_DB
