"""The program of each process of observers/test_sync.py. It asserts nothing and writes its results to a file."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from qspec_core import CalibrationError
from qspec_core.fake_quantize import FakeQuantize, LearnableFakeQuantize
from qspec_core.observers import (
    AffineQuantizedMinMaxObserver,
    FixedQParamsObserver,
    HistogramObserver,
    MappingType,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PerGroup,
    PlaceholderObserver,
    sync_observers,
)


def observers() -> nn.ModuleDict:
    """One observer of each kind, and one under two names."""
    shared = HistogramObserver(dtype=torch.uint8)
    learning = LearnableFakeQuantize(MinMaxObserver, dtype=torch.int8, qscheme=torch.per_tensor_symmetric)
    learning(torch.ones(3))
    learning.enable_range_learning()
    return nn.ModuleDict(
        {
            "minmax": MinMaxObserver(),
            "channels": PerChannelMinMaxObserver(ch_axis=1),
            "histogram": HistogramObserver(bins=64, dtype=torch.int8),
            "clamped": nn.Sequential(nn.Hardtanh(-1.0, 1.0), HistogramObserver(dtype=torch.uint8)),
            "shared": shared,
            "again": shared,
            "average": MovingAverageMinMaxObserver(averaging_constant=0.25),
            "average_channels": MovingAveragePerChannelMinMaxObserver(averaging_constant=0.25),
            "groups": AffineQuantizedMinMaxObserver(MappingType.ASYMMETRIC, torch.uint8, PerGroup(1)),
            "fake": FakeQuantize(HistogramObserver, dtype=torch.uint8),
            "fake_channels": FakeQuantize(PerChannelMinMaxObserver, qscheme=torch.per_channel_affine),
            "learnable": LearnableFakeQuantize(MinMaxObserver, dtype=torch.int8, qscheme=torch.per_tensor_symmetric),
            "learning": learning,
            "fixed": FixedQParamsObserver(0.5, 3),
            "placeholder": PlaceholderObserver(),
        }
    )


def batches(ranks: int) -> list[list[Tensor]]:
    """Data of each process: of another size on each, and none on the last."""
    generator = torch.Generator().manual_seed(5)
    return [
        [torch.randn(7, 5, generator=generator) * 3.0**rank + rank for _ in range(rank + 2)] if rank < ranks - 1 else []
        for rank in range(ranks)
    ]


def observe(module: nn.ModuleDict, data: list[Tensor]) -> nn.ModuleDict:
    for batch in data:
        for name, part in module.items():
            if name != "learning":
                part(batch)
    return module


class Foreign(nn.Module):
    """An observer of another stack."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return torch.ones(1), torch.zeros(1)


def unlike(rank: int) -> Mapping[str, nn.Module]:
    """Models that cannot be merged: process 1 has another one than the rest, save for `foreign`."""
    odd = rank == 1
    channels = PerChannelMinMaxObserver()
    if rank != 2:
        channels(torch.ones(4 if odd else 3, 2))
    return {
        "type": nn.ModuleList([HistogramObserver() if odd else MinMaxObserver()]),
        "setting": nn.ModuleList([MinMaxObserver(quant_max=127 if odd else 255)]),
        "count": nn.ModuleList([MinMaxObserver() for _ in range(1 if odd else 2)]),
        "name": nn.ModuleDict({"b" if odd else "a": MinMaxObserver()}),
        "channels": nn.ModuleList([channels]),
        "foreign": nn.ModuleList([MinMaxObserver(), Foreign()]),
    }


def run(rank: int, ranks: int, folder: Path) -> None:
    """Process `rank` of `ranks`, which meet in `folder`."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=ranks, rank=rank)
    result: dict[str, Any] = {}  # tensors and messages, by what they are of
    module = observe(observers(), batches(ranks)[rank])
    sync_observers(module)
    result["state"] = module.state_dict()
    unseen = nn.ModuleList([MinMaxObserver(), PerChannelMinMaxObserver(), HistogramObserver()])
    sync_observers(unseen)
    result["unseen"] = [part.has_observed for part in unseen]
    errors = {}
    for name, model in unlike(rank).items():
        before = {key: value.clone() for key, value in model.state_dict().items()}
        try:
            sync_observers(model)
        except CalibrationError as error:
            untouched = all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
            errors[name] = str(error.found), untouched
    result["errors"] = errors
    pair = distributed.new_group([0, 2])
    part = MinMaxObserver()
    part(torch.tensor([float(rank)]))
    if rank in (0, 2):
        sync_observers(part, pair)
    result["pair"] = part.min_val.item(), part.max_val.item()
    torch.save(result, folder / f"{rank}.pt")
    distributed.destroy_process_group()
