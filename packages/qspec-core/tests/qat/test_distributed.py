"""Training with `DistributedDataParallel` over gloo, against one process that has the whole batch."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from ddp_worker import BATCH, prepared, run, train
from torch import Tensor

from qspec_core import CalibrationError
from qspec_core.observers import share_ranges


def states(ranks: int, folder: Path) -> list[dict[str, Tensor]]:
    """The state of each process after training."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ddp_worker"])
    processes = [context.Process(target=run, args=(rank, ranks, folder)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * ranks
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_several_processes_train_as_one_with_the_whole_batch(ranks: int, tmp_path: Path) -> None:
    alone = prepared(BATCH)
    train(alone, 0, BATCH)
    found = states(ranks, tmp_path)
    for name, value in alone.state_dict().items():
        for state in found[1:]:
            assert torch.equal(state[name], found[0][name]), name
        # Gradients of parts are summed in another order, and a value at a tie may round to the other side.
        torch.testing.assert_close(found[0][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_ranges_are_shared_in_a_process_group_only() -> None:
    module = prepared(BATCH)
    with pytest.raises(CalibrationError, match="no process group"):
        share_ranges(module)
    assert share_ranges(module, enabled=False) > 0
