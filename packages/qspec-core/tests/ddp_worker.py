"""The program of each process of qat/test_distributed.py. It asserts nothing and writes its results to a file."""

from datetime import timedelta
from pathlib import Path

import torch
from qat_support import exported, qat_quantizer
from torch import Tensor, distributed, nn
from torch.fx import GraphModule

from qspec_core import prepare_qat_pt2e
from qspec_core.observers import share_ranges

BATCH, STEPS = 8, 4


def prepared(count: int) -> GraphModule:
    """The same model in every process, for batches of `count` images."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    return prepare_qat_pt2e(exported(net, batch(0)[:count]), qat_quantizer())


def batch(step: int) -> Tensor:
    """The batch of all processes; the parts of the processes have ranges far apart."""
    images = torch.randn(BATCH, 3, 6, 6, generator=torch.Generator().manual_seed(step))
    return images * torch.arange(1, BATCH + 1).reshape(-1, 1, 1, 1)


def train(module: nn.Module, rank: int, count: int) -> None:
    """Train on this process's part of each batch."""
    optimizer = torch.optim.SGD(module.parameters(), 0.001)
    for step in range(STEPS):
        loss = (module(batch(step)[rank * count : (rank + 1) * count]) - 1).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


def run(rank: int, ranks: int, folder: Path) -> None:
    """Train in one process of several, and write its state."""
    torch.set_num_threads(1)
    place = f"file://{folder / 'store'}"
    distributed.init_process_group("gloo", place, timedelta(seconds=60), world_size=ranks, rank=rank)
    count = BATCH // ranks
    module = prepared(count)
    share_ranges(module)
    train(nn.parallel.DistributedDataParallel(module, broadcast_buffers=False), rank, count)
    torch.save(module.state_dict(), folder / f"{rank}.pt")
    distributed.destroy_process_group()
