"""Observers of four processes (gloo) against those of one process that saw all of the data."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sync_worker import Foreign, batches, observe, observers, run
from torch import Tensor, distributed, nn

from qspec_core import CalibrationError
from qspec_core.observers import MinMaxObserver, sync_observers

RANKS = 4
EXAMPLE = Path(__file__).parents[4] / "examples" / "calibrate_distributed.py"
DATA = RANKS - 1  # the last process has none


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each process. They are started once, from a process that has imported torch and has no threads."""
    folder = tmp_path_factory.mktemp("sync")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sync_worker"])
    processes = [context.Process(target=run, args=(rank, RANKS, folder)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * RANKS
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone() -> nn.ModuleDict:
    """The observers of one process that sees all of the data."""
    return observe(observers(), [batch for data in batches(RANKS) for batch in data])


def part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key.startswith(f"{name}.")}


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize(
    "name",
    ["minmax", "channels", "histogram", "clamped", "shared", "again", "fake", "fake_channels", "learnable", "groups"],
)
def test_state_is_that_of_one_process_over_the_union(
    results: list[dict[str, Any]], alone: nn.ModuleDict, name: str, rank: int
) -> None:
    found, expected = part(results[rank]["state"], name), part(alone.state_dict(), name)
    assert expected
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_moving_averages_are_the_mean_of_the_processes_that_saw_data(results: list[dict[str, Any]]) -> None:
    limits = []
    for data in batches(RANKS)[:DATA]:
        low, high = data[0].amin(1), data[0].amax(1)
        whole = [data[0].min(), data[0].max()]
        for batch in data[1:]:
            low, high = low + 0.25 * (batch.amin(1) - low), high + 0.25 * (batch.amax(1) - high)
            whole = [
                whole[0] + 0.25 * (batch.min() - whole[0]),
                whole[1] + 0.25 * (batch.max() - whole[1]),
            ]
        limits.append(torch.stack([*low, *high, *whole]))
    mean = torch.stack(limits).double().mean(0).float()
    for result in results:
        state = result["state"]
        assert torch.equal(state["average_channels.min_val"], mean[:7])
        assert torch.equal(state["average_channels.max_val"], mean[7:14])
        assert state["average.min_val"] == mean[14]
        assert state["average.max_val"] == mean[15]


def test_learned_and_fixed_parameters_stay(results: list[dict[str, Any]]) -> None:
    expected = observers().state_dict()
    for result in results:
        for name in ("learning.scale", "learning.zero_point", "fixed.scale", "fixed.zero_point"):
            assert torch.equal(result["state"][name], expected[name])


def test_observers_without_data_on_every_process_stay_empty(results: list[dict[str, Any]]) -> None:
    assert all(result["unseen"] == [False, False, False] for result in results)


@pytest.mark.parametrize(
    ("case", "found"),
    [
        ("type", "HistogramObserver(dtype=torch.quint8"),
        ("setting", "quant_max=127"),
        ("count", "1 observers, on rank 1"),
        ("name", "b: MinMaxObserver("),
        ("channels", "shape (4,) at 0, on rank 1"),
        ("foreign", "Foreign"),
    ],
)
def test_different_observers_raise_on_every_process_and_change_nothing(
    results: list[dict[str, Any]], case: str, found: str
) -> None:
    for result in results:
        message, untouched = result["errors"][case]
        assert found in message
        assert untouched


def test_processes_outside_the_group_are_not_changed(results: list[dict[str, Any]]) -> None:
    assert [result["pair"] for result in results] == [(0.0, 2.0), (1.0, 1.0), (0.0, 2.0), (3.0, 3.0)]


def test_a_single_process_keeps_its_state(tmp_path: Path) -> None:
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mine = observe(observers(), batches(2)[0])
        before = {name: value.clone() for name, value in mine.state_dict().items()}
        sync_observers(mine)
        for name, value in mine.state_dict().items():
            assert torch.equal(value, before[name]), name
        mine["foreign"] = Foreign()
        with pytest.raises(CalibrationError, match="is not of qspec"):
            sync_observers(mine)
    finally:
        distributed.destroy_process_group()


def test_without_a_process_group_it_raises() -> None:
    with pytest.raises(CalibrationError, match="torchrun") as caught:
        sync_observers(MinMaxObserver())
    assert "init_process_group" in caught.value.remedy


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the sdist holds no examples")
def test_the_example_equals_one_process() -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", str(EXAMPLE)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 processes, 32 batches: the same as one process" in done.stdout
