"""Architectures of `transformers` through prepare, calibration and convert: qspec's tables beside torchao's quantizers.

    python benchmarks/zoo.py [--only TEXT] [--sides TEXT] [--json FILE]

Small models with random weights. Compared are the operators found, the time of the flow and the loss of accuracy.
Seconds are CPU seconds of prepare and convert on one thread. For XPU, qspec's graphs are lowered too, which needs no
GPU: the layers counted there are those that its kernels run.
"""

import argparse
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from contest import Contender, Contest, Failed, Steps, write_json
from rich.console import Console
from rich.table import Table
from zoo_models import ZOO

__all__ = ["main"]

SIDES = {
    "qspec x86": ("qspec", "x86"),
    "torchao x86": ("torchao", "x86"),
    "qspec XNNPACK": ("qspec", "xnnpack"),
    "ExecuTorch XNNPACK": ("torchao", "xnnpack"),
    "qspec XPU": ("qspec", "xpu"),
    "torchao XPU": ("torchao", "xpu"),
}
Found = dict[str, dict[str, Any]]  # by side and architecture: the worker's answer, or its problem


def main() -> None:
    """Run every architecture on every side and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="architectures whose name contains this")
    parser.add_argument("--sides", default="", help="sides whose name contains this")
    parser.add_argument("--json", type=Path, default=None, help="write the results to this file as JSON")
    arguments = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 150)
    names = [architecture.name for architecture in ZOO if arguments.only in architecture.name]
    with console.status("start") as status:
        found = measure(names, arguments.sides, Steps(console, status))
    console.print(table_of(names, found))
    console.print(summary_of(found))
    for side, answers in found.items():
        for name, answer in answers.items():
            if "problem" in answer:
                console.print(f"{side}, {name}: {answer['problem']}", markup=False, highlight=False)
        reasons: Counter[str] = sum((Counter(answer.get("skipped", {})) for answer in answers.values()), Counter())
        for reason, count in reasons.most_common():
            console.print(f"{side}: {count} layers in float: {reason}", markup=False, highlight=False)
    write_json(arguments.json, found)


def measure(names: list[str], wanted: str, steps: Steps) -> Found:
    """Ask each side whose name contains a text for each architecture. A side that fails goes on with the next one."""
    worker = str(Path(__file__).parent / "zoo_worker.py")
    with Contest({"OMP_NUM_THREADS": "1"}) as contest:
        sides = {side: contest.add(side, worker, *command) for side, command in SIDES.items() if wanted in side}
        found: Found = {side: {} for side in sides}
        for index, name in enumerate(names):
            steps.say(f"{index + 1} of {len(names)}: {name}")
            for side, contender in sides.items():
                found[side][name] = _answer(contender, name)
        return found


def _answer(contender: Contender, name: str) -> dict[str, Any]:
    try:
        return contender.ask(do="run", name=name)
    except Failed as failure:
        return {"problem": str(failure)}


def _layers(answer: dict[str, Any]) -> str:
    return "raises" if "problem" in answer else "{} of {}".format(*answer["layers"])


def _decibels(answer: dict[str, Any]) -> str:
    return "-" if answer.get("sqnr") is None else f"{answer['sqnr']:.1f}"


def table_of(names: list[str], found: Found) -> Table:
    """One line per architecture: layers quantized and SQNR of each side."""
    table = Table(title="layers quantized, and SQNR against float in dB")
    table.add_column("architecture")
    for side in found:
        table.add_column(side, justify="right")
        table.add_column("dB", justify="right")
    for name in names:
        cells = [cell for answers in found.values() for cell in (_layers(answers[name]), _decibels(answers[name]))]
        table.add_row(name, *cells)
    return table


def summary_of(found: Found) -> Table:
    """One line per side: architectures that run, layers quantized, seconds, median SQNR."""
    table = Table(title="all architectures")
    for column in ("side", "run", "layers quantized", "of them %", "prepare + convert s", "median SQNR dB"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for side, answers in found.items():
        ran = [answer for answer in answers.values() if "problem" not in answer]
        quantized, layers = (sum(answer["layers"][i] for answer in ran) for i in range(2))
        share = f"{100 * quantized / layers:.1f}" if layers else "-"
        known = [answer["sqnr"] for answer in ran if answer["sqnr"] is not None]
        table.add_row(
            side,
            f"{len(ran)} of {len(answers)}",
            f"{quantized} of {layers}",
            share,
            f"{sum(answer['seconds'] for answer in ran):.1f}",
            f"{median(known):.1f}" if known else "-",
        )
    return table


if __name__ == "__main__":
    main()
