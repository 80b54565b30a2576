"""Networks with trained weights on this CPU: qspec beside torchao, ONNX Runtime, and NNCF with OpenVINO.

    python benchmarks/real.py [--tasks NAME ...] [--only NAME ...] [--rounds N] [--iterations N] [--threads N]
        [--json FILE]

Batch 1, one process for each contender, in turns. All calibrate on the same inputs and are compared on the same others.
The measure of a task is taken on the results of each contender: against the truth where there is one, else against
float. Where a contender has more signal to noise than both forms of qspec, a line says so.
"""

import argparse
from pathlib import Path
from typing import Any

from contest import Contest, Steps, pin_to_cores, write_json
from examples.timing import Latency, cpu_line
from real_tasks import TASKS
from real_worker import CONTENDERS
from rich.console import Console
from rich.table import Table

__all__ = ["main"]

MIB = 2**20
OURS = ("qspec static", "qspec dynamic")
"""Forms that run on the x86 backend."""
WIDTH = 150


def main() -> None:
    """Measure all contenders of all tasks; print a table for each."""
    arguments = _arguments()
    cores = pin_to_cores(arguments.threads)
    console = Console(width=None if Console().is_terminal else WIDTH)
    console.print(f"{cpu_line()}; {arguments.threads} threads on cores {cores}", highlight=False)
    found: dict[str, Any] = {}
    for task in arguments.tasks:
        found[task] = measure(console, task, arguments)
        console.print(table_of(task, found[task]))
        for line in notes_of(found[task]):
            console.print(line, markup=False, highlight=False)
        write_json(arguments.json, {"cpu": cpu_line(), "threads": arguments.threads, "tasks": found})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="only these tasks")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), help="contenders")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each contender")
    parser.add_argument("--iterations", type=int, default=10, help="timed runs in a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("bench-real.json"), help="write the results to this file")
    return parser.parse_args()


def measure(console: Console, task: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Build every contender of a task, then time them in turns."""
    threads = {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    worker = str(Path(__file__).parent / "real_worker.py")
    found: dict[str, Any] = {}
    with console.status("start") as status, Contest(threads) as contest:
        say = Steps(console, status).say
        for name in arguments.only:
            say(f"{task}: build {name}")
            contender = contest.add(name, worker, name, str(contest.folder), str(arguments.threads), task)
            found[name] = {**(contender.attempt(do="build") or {}), "problem": contender.problem}
        contest.turns(arguments.rounds, say, do="run", iterations=arguments.iterations)
        for contender in contest.contenders:
            found[contender.name] |= {"ms": contender.times.get("ms", []), "problem": contender.problem}
    return found


def table_of(task: str, found: dict[str, Any]) -> Table:
    """One line for each contender."""
    table = Table(title=TASKS[task].title)
    table.add_column("contender")
    for title in ("layers", "SQNR, dB", TASKS[task].metric, "file, MiB", "ms min", "ms median"):
        table.add_column(title, justify="right")
    for name, entry in found.items():
        if "lowered" not in entry:
            table.add_row(name, "failed")
            continue
        result, size = entry["lowered"], entry.get("size")
        latency = Latency.of(entry["ms"]) if entry.get("ms") else None
        table.add_row(
            name,
            entry.get("layers") or "-",
            "exact" if result["sqnr"] is None else f"{result['sqnr']:.1f}",
            f"{result['score']:.4g}",
            "-" if size is None else f"{size / MIB:.2f}",
            *(("-", "-") if latency is None else (f"{latency.minimum:.3f}", f"{latency.median:.3f}")),
        )
    return table


def notes_of(found: dict[str, Any]) -> list[str]:
    """Problems, and the quantized contenders with more signal to noise than qspec."""
    notes = [f"{name}: {entry['problem']}" for name, entry in found.items() if entry["problem"]]
    signal = {
        name: entry["lowered"]["sqnr"] for name, entry in found.items() if "lowered" in entry and "f32" not in name
    }
    ours = max((signal[name] for name in OURS if signal.get(name) is not None), default=None)
    better = [
        f"{name} has {value - ours:.1f} dB more than qspec"
        for name, value in signal.items()
        if ours is not None and value is not None and value > ours and not name.startswith(("float", "qspec"))
    ]
    return notes + better


if __name__ == "__main__":
    main()
