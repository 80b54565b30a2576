"""Models through XNNPACK: qspec beside ExecuTorch's own quantizer, and float.

    python benchmarks/xnnpack.py [--models NAME ...] [--sides NAME ...] [--rounds N] [--iterations N] [--json FILE]

One process for each side and model, in turns. Both sides calibrate on the same data and are compared with float on
other data. The minimum counts; compare ratios within one run only.
"""

import argparse
from pathlib import Path
from typing import Any

from contest import Contest, Steps, pin_to_cores, write_json
from examples.timing import Latency, cpu_line
from rich.console import Console
from rich.table import Table
from xnnpack_models import MODELS
from xnnpack_worker import SIDES

__all__ = ["main"]

MIB = 2**20
OF_WORDS = ("bert", "gpt2")
FOR_WORDS = ("qspec dynamic", "qspec 4-bit")  # pictures have few linear layers


def main() -> None:
    """Measure all sides of all models and print a table for each."""
    arguments = _arguments()
    cores = pin_to_cores(arguments.threads)
    console = Console(width=None if Console().is_terminal else 140)
    console.print(f"{cpu_line()}; {arguments.threads} threads on cores {cores}", highlight=False)
    found: dict[str, Any] = {}
    with console.status("start") as status:
        for model in arguments.models:
            found[model] = measure(model, arguments, Steps(console, status))
            console.print(table_of(model, found[model]))
    write_json(arguments.json, {"cpu": cpu_line(), "threads": arguments.threads, "models": found})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=10, help="turns of each side")
    parser.add_argument("--iterations", type=int, default=5, help="timed runs in a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None, help="write the results to this file as JSON")
    return parser.parse_args()


def measure(model: str, arguments: argparse.Namespace, steps: Steps) -> dict[str, Any]:
    """Answer of each side for one model, by its name, with its times or its problem."""
    worker = str(Path(__file__).parent / "xnnpack_worker.py")
    sides = [side for side in arguments.sides if model in OF_WORDS or side not in FOR_WORDS]
    threads = {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    found: dict[str, Any] = {}
    with Contest(threads) as contest:
        for side in sides:
            steps.say(f"{model}: build {side}")
            one = contest.add(side, worker, side, model, str(contest.folder), str(arguments.threads))
            found[side] = one.attempt(do="build") or {}
        contest.turns(arguments.rounds, steps.say, do="run", iterations=arguments.iterations)
        for one in contest.contenders:
            found[one.name] |= {"ms": one.times.get("ms", []), "problem": one.problem}
    return found


def table_of(model: str, found: dict[str, Any]) -> Table:
    """One line for each side."""
    table = Table(title=model)
    table.add_column("side")
    for title in ("layers\nquantized", "outside\ndelegate", "SQNR dB", "prepare +\nconvert s", "file\nMiB", "ms min"):
        table.add_column(title, justify="right")
    for side, entry in found.items():
        if entry["problem"]:
            table.add_row(side, "failed", entry["problem"][:60])
            continue
        table.add_row(
            side,
            entry["layers"] or "-",
            str(entry["outside"]),
            "exact" if entry["sqnr"] is None else f"{entry['sqnr']:.1f}",
            f"{entry['seconds']:.2f}" if entry["seconds"] else "-",
            f"{entry['size'] / MIB:.2f}",
            f"{Latency.of(entry['ms']).minimum:.2f}" if entry["ms"] else "-",
        )
    return table


if __name__ == "__main__":
    main()
