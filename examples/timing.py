"""Latency of several ways to run one model, measured in turns, and a line that describes the CPU."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Latency", "cpu_line", "has_vnni", "interleaved"]

_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8")
_VECTORS = ("avx2", "avx512_f", *_DOT_PRODUCTS)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of several runs. The minimum is the best of the machine; the median includes its other load."""

    minimum: float
    median: float

    @classmethod
    def of(cls, times: list[float]) -> "Latency":
        """From the time of each run."""
        return cls(min(times), statistics.median(times))


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int, each: int) -> dict[str, Latency]:
    """Time several ways in turns, so that other load on the machine affects all of them.

    Args:
        ways: callables without arguments, by name.
        rounds: number of turns of each way.
        each: timed runs in a turn, after one run that is not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            run()
            for _ in range(each):
                start = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: Latency.of(found) for name, found in times.items()}


def has_vnni() -> bool:
    """Whether this CPU sums 8-bit products in 32 bits: VNNI or AMX."""
    flags = torch.cpu.get_capabilities()
    return any(flags.get(name, False) for name in _DOT_PRODUCTS)


def cpu_line() -> str:
    """The CPU, its vector instructions, whether it has VNNI, and torch's version, in one line."""
    flags = torch.cpu.get_capabilities()
    vectors = " ".join(name for name in _VECTORS if flags.get(name, False)) or "no AVX2"
    vnni = "yes" if has_vnni() else "no"
    cores = flags.get("num_physical_cores", os.cpu_count())
    name = flags.get("cpu_name", platform.machine())
    return f"{name}, {cores} cores, {vectors}; VNNI {vnni}; torch {torch.__version__}"
